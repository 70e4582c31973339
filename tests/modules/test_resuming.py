"""Runs that are stopped in whatever way go on as if they had not been."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_edit.callbacks import LastCheckpoint
from lightning_edit.cli import main
from lightning_edit.modules import EditingModule
from tests.modules.test_training import write_config


def configured(folder, tiny_folder, **changes):
    """A run with a recent checkpoint, ten batches an epoch and learning rates that do not depend on its length."""
    config = write_config(folder, tiny_folder)
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["optimization"]["schedule"] = "constant"
    content["data"].pop("validation")
    content["data"]["num_workers"] = 0
    content["trainer"]["callbacks"] = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": str(folder / "checkpoints"), "save_top_k": 0},
        },
        {"class_path": "lightning_edit.callbacks.LastCheckpoint"},
    ]
    content["trainer"].update(changes)
    config.write_text(yaml.safe_dump(content))
    return str(config)


def weights(folder):
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content["global_step"], content["state_dict"]


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name


@pytest.mark.parametrize("stops", [[13], [10], [3, 7, 12]], ids=str)
def test_a_run_stopped_by_its_number_of_steps_goes_on_within_the_epoch(tiny_folder, tmp_path, stops):
    whole = tmp_path / "whole"
    whole.mkdir()
    assert main(["fit", "--config", configured(whole, tiny_folder, max_epochs=2)]) == 0
    folder = tmp_path / "cut"
    folder.mkdir()
    config, last = configured(folder, tiny_folder, max_epochs=2), str(folder / "checkpoints" / "last.ckpt")
    for number, stop in enumerate(stops):
        resume = ["--ckpt_path", last] if number else []
        assert main(["fit", "--config", config, "--trainer.max_steps", str(stop), *resume]) == 0
        assert weights(folder)[0] == stop
    assert main(["fit", "--config", config, "--ckpt_path", last]) == 0
    assert weights(folder)[0] == 20
    assert_same(weights(folder), weights(whole))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data.batch_size", "3"),
        ("--data.seed", "5"),
        ("--data.train.init_args.limit", "30"),
        ("--data.locality_draws", "2"),
    ],
)
def test_a_run_with_other_batches_is_refused(tiny_folder, tmp_path, capsys, option, value):
    config = configured(tmp_path, tiny_folder)
    assert main(["fit", "--config", config, "--trainer.max_steps", "3"]) == 0
    resume = ["--ckpt_path", str(tmp_path / "checkpoints" / "last.ckpt")]
    assert main(["fit", "--config", config, *resume, option, value]) == 1
    assert "other training batches" in capsys.readouterr().err


def test_last_is_the_newest_run_of_the_name_or_an_error(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path, tiny_folder)
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"]["callbacks"] = [{"class_path": "lightning_edit.callbacks.LastCheckpoint"}]
    content["trainer"]["enable_checkpointing"] = False
    Path(config).write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", config, "--ckpt_path", "last"]) == 1
    assert "no earlier run in" in capsys.readouterr().err
    assert main(["fit", "--config", config, "--trainer.max_steps", "3"]) == 0
    assert (tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "5"]) == 0
    newest = torch.load(tmp_path / "run" / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert newest["global_step"] == 5


def test_an_editor_that_was_never_trained_is_not_measured(tiny_folder, tmp_path, capsys):
    config = write_config(tmp_path, tiny_folder)
    for command in ("validate", "test", "predict"):
        assert main([command, "--config", str(config)]) == 1
        assert "MEND has to be fitted first" in capsys.readouterr().err


def test_a_trial_run_leaves_nothing_behind(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path, tiny_folder)
    assert main(["fit", "--config", config, "--trainer.fast_dev_run", "true"]) == 0
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_and_is_the_exit_status(tiny_folder, tmp_path, number, status):
    config = configured(tmp_path, tiny_folder, max_epochs=2000)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.Popen(
        [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", config],
        env=environment,
        # Shells let what they run in the background ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "version_0" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.2)
    assert metrics.exists()
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == status, errors
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"Go on with --ckpt_path {last}" in errors
    resume = ["--ckpt_path", str(last), "--trainer.max_time", "00:00:00:01"]
    assert main(["fit", "--config", config, *resume]) == 0


def children_of(process):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed, with which the second process is found")
def test_a_signal_to_the_second_process_stops_both(tiny_folder, tmp_path):
    config = configured(
        tmp_path, tiny_folder, max_epochs=2000, devices=2, strategy="ddp", use_distributed_sampler=False
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", config],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "version_0" / "metrics.csv"
    deadline = time.monotonic() + 180
    while not metrics.exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.2)
    assert metrics.exists()
    [second] = [pid for pid in children_of(run) if "lightning_edit" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(second, signal.SIGTERM)
    _, errors = run.communicate(timeout=90)
    assert run.returncode == 143, errors
    deadline = time.monotonic() + 30
    while is_running(second) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not is_running(second)
    step, _ = weights(tmp_path)
    assert step > 0


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_broken_checkpoint_is_an_error_in_words(tiny_folder, tmp_path, capsys, content):
    config = write_config(tmp_path, tiny_folder)
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    assert main(["validate", "--config", str(config), "--ckpt_path", str(path)]) == 1
    assert "not a checkpoint that can be loaded safely" in capsys.readouterr().err
    assert main(["validate", "--config", str(config), "--ckpt_path", str(tmp_path / "none.ckpt")]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert main(["validate", "--config", str(config), "--ckpt_path", "http://127.0.0.1:9/x.ckpt"]) == 1
    assert "checkpoints are read from local files" in capsys.readouterr().err


class StopAfterBatch(Callback):
    """Interrupts a run once, after a given batch."""

    def __init__(self, batch: int, marker: str) -> None:
        self.batch, self.marker = batch, Path(marker)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch and not self.marker.exists():
            self.marker.touch()
            self.stop(trainer)

    def stop(self, trainer):
        raise KeyboardInterrupt


def add_stop(config, kind, batch):
    """Adds a callback that stops the run once, after a given batch."""
    path = Path(config)
    content = yaml.safe_load(path.read_text())
    arguments = {"batch": batch, "marker": str(path.parent / "stopped")}
    content["trainer"]["callbacks"].insert(0, {"class_path": f"{__name__}.{kind.__name__}", "init_args": arguments})
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("batch", [2, 3])
def test_a_run_stopped_between_the_batches_of_a_step_goes_on_within_it(tiny_folder, tmp_path, batch):
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    folder.mkdir()
    assert main(["fit", "--config", configured(whole, tiny_folder, max_epochs=1, accumulate_grad_batches=2)]) == 0
    config = configured(folder, tiny_folder, max_epochs=1, accumulate_grad_batches=2)
    add_stop(config, StopAfterBatch, batch)
    assert main(["fit", "--config", config]) == 130
    assert weights(folder)[0] < 5
    assert main(["fit", "--config", config, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]) == 0
    assert_same(weights(folder), weights(whole))


class StopLikeATimer(StopAfterBatch):
    """Ends a run after a given batch as the Trainer's ``max_time`` does, once."""

    def stop(self, trainer):
        trainer.should_stop = True


def test_a_run_stopped_by_its_time_goes_on_within_the_epoch(tiny_folder, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    folder.mkdir()
    assert main(["fit", "--config", configured(whole, tiny_folder, max_epochs=2)]) == 0
    config, last = configured(folder, tiny_folder, max_epochs=2), str(folder / "checkpoints" / "last.ckpt")
    add_stop(config, StopLikeATimer, 3)
    assert main(["fit", "--config", config]) == 0
    assert weights(folder)[0] == 4
    assert main(["fit", "--config", config, "--ckpt_path", last]) == 0
    assert_same(weights(folder), weights(whole))


def test_last_does_not_take_the_checkpoint_of_another_run(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path, tiny_folder)
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"]["callbacks"] = [{"class_path": "lightning_edit.callbacks.LastCheckpoint"}]
    content["trainer"]["enable_checkpointing"] = False
    Path(config).write_text(yaml.safe_dump(content))
    # Written by something else that shares the current folder.
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"another run's")
    assert main(["fit", "--config", config, "--ckpt_path", "last"]) == 1
    assert "no earlier run in" in capsys.readouterr().err


class TouchAfterTestBatch(Callback):
    """Says by a file that a test has measured its first batch."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.marker.touch()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_test_and_is_the_exit_status(tiny_folder, tmp_path, number, status):
    marker = tmp_path / "measured"
    config = write_config(tmp_path, tiny_folder)
    content = yaml.safe_load(config.read_text())
    content["model"] = {
        "class_path": "lightning_edit.modules.EditingModule",
        "init_args": {
            "language_model": {"name_or_path": str(tiny_folder)},
            "editor": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [1]}},
        },
    }
    facts = {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"limit": 400}}
    content["data"] = {"test": facts, "eval_batch_size": 2}
    callback = {"class_path": f"{__name__}.TouchAfterTestBatch", "init_args": {"marker": str(marker)}}
    content["trainer"]["callbacks"] = [callback, {"class_path": "lightning_edit.callbacks.TestReport"}]
    config.write_text(yaml.safe_dump(content))
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "lightning_edit.cli", "test", "--config", str(config)],
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 120
        while not marker.exists() and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.1)
        assert marker.exists(), errors.read_text()
        run.send_signal(number)
        assert run.wait(timeout=60) == status, errors.read_text()
    finally:
        run.kill()
    assert errors.read_text().endswith("lightning-edit test: stopped; run the same command again to resume\n")
    assert "Traceback" not in errors.read_text()
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_recent_checkpoint_is_saved_at_its_interval_before_the_first_validation(tiny_folder, tmp_path, monkeypatch):
    """The clock goes on by a second whenever it is read: once behind each batch, and once more behind a save."""
    seconds, events = itertools.count(), []
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr("lightning_edit.callbacks.last_checkpoint.time", clock)
    save, started = LastCheckpoint.save, EditingModule.on_validation_start

    def saving(self, trainer):
        save(self, trainer)
        assert self.path.is_file()
        events.append(("saved", torch.load(self.path, weights_only=True)["global_step"]))

    def starting(self):
        events.append(("validated", self.trainer.global_step))
        started(self)

    monkeypatch.setattr(LastCheckpoint, "save", saving)
    monkeypatch.setattr(EditingModule, "on_validation_start", starting)
    config = write_config(tmp_path, tiny_folder, max_epochs=1)
    content = yaml.safe_load(config.read_text())
    content["data"]["num_workers"] = 0
    content["data"]["validation"]["init_args"]["limit"] = 1
    content["trainer"].update(callbacks=[], enable_checkpointing=False)
    last = {"class_path": "lightning_edit.callbacks.LastCheckpoint", "init_args": {"every_seconds": 3}}
    content["trainer"]["callbacks"] = [last]
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config)]) == 0
    assert events == [("saved", 3), ("saved", 6), ("saved", 9), ("validated", 10), ("saved", 10)]
