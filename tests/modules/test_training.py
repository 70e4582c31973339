"""A MEND run from end to end on a tiny model, through the command line: fit, kill, resume, test, edit, merge."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.editors import MEND, load_editor
from lightning_edit.editors.checkpoint import DIGEST, KEY, export_checkpoint, state_digest
from lightning_edit.errors import BaseModelMismatchError, ConfigurationError
from lightning_edit.metrics import ngram_entropy
from lightning_edit.models import load_language_model
from lightning_edit.modules import HypernetworkEditing
from tests.testers import REQUESTS, target_log_probs


def write_config(folder, tiny_folder, **trainer):
    facts = {"class_path": "lightning_edit.data.WorldFacts"}
    config = {
        "seed_everything": 3,
        "model": {
            "class_path": "lightning_edit.modules.HypernetworkEditing",
            "init_args": {
                "language_model": {"name_or_path": str(tiny_folder)},
                "editor": {"class_path": "lightning_edit.editors.MEND", "init_args": {"sites": [1, 2], "rank": 4}},
                "optimization": {"schedule": "cosine", "warmup_steps": 2},
                "trunk": {"gigabytes": 1.0},
                "factor_gigabytes": 1.0,
            },
        },
        "data": {
            "train": {**facts, "init_args": {"split": "train", "limit": 42}},
            "validation": {**facts, "init_args": {"split": "validation", "limit": 5}},
            "batch_size": 4,
            "num_workers": 1,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning_edit.callbacks.MetricsCSV",
                "init_args": {"save_dir": str(folder), "name": "run", "flush_logs_every_n_steps": 5},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "dirpath": str(folder / "checkpoints"),
                        "filename": "{step}",
                        "every_n_train_steps": 1,
                        "save_top_k": -1,
                        "save_last": True,
                    },
                },
                {"class_path": "lightning_edit.callbacks.TestReport"},
            ],
            **trainer,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """A finished run, which tests only read."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, tiny_folder)
    assert main(["fit", "--config", str(config)]) == 0
    return folder


def test_metrics_csv_begins_with_the_main_columns(run):
    text = (run / "run" / "version_0" / "metrics.csv").read_text()
    columns = text.splitlines()[0].split(",")
    assert columns[:6] == ["epoch", "step", "train/loss", "train/edit_loss", "train/locality_loss", "val/score"]
    assert columns[6] == "val/edit_success/token_accuracy"
    of_sites = ["down_proj" in name for name in columns]
    assert any(of_sites)
    assert of_sites == sorted(of_sites)
    assert len(set(columns)) == len(columns)
    rows = list(csv.DictReader(text.splitlines()))
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert steps == list(range(len(steps)))


def test_values_of_single_sites_can_be_left_out(tmp_path, tiny_folder):
    config = write_config(tmp_path, tiny_folder, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    assert main(["fit", "--config", str(config), "--model.log_sites", "false"]) == 0
    header = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "train/loss" in header
    assert "down_proj" not in header


def load(path):
    return torch.load(path, weights_only=True)


def test_the_checkpoint_holds_the_editor_and_names_the_base(run, tiny_folder):
    content = load(run / "checkpoints" / "last.ckpt")
    assert all(name.startswith("editor.") for name in content["state_dict"])
    assert content[KEY]["base"]["name"] == str(tiny_folder)
    assert content[KEY]["editor"]["init_args"]["rank"] == 4


def test_from_checkpoint_restores_the_editor_of_the_run(run, tiny_folder):
    model = load_language_model(str(tiny_folder))
    editor = MEND.from_checkpoint(run / "checkpoints" / "last.ckpt", model)
    again = load_editor(run / "checkpoints" / "last.ckpt", model)
    assert not editor.training
    with editor.edit(model, REQUESTS[:1]).applied(model) as edited:
        first = target_log_probs(edited, REQUESTS)
    with again.edit(model, REQUESTS[:1]).applied(model) as edited:
        assert target_log_probs(edited, REQUESTS) == first
    assert first != target_log_probs(model, REQUESTS)


def test_an_exported_editor_is_small_and_edits_like_its_checkpoint(run, tiny_folder, tmp_path, capsys):
    model = load_language_model(str(tiny_folder))
    last, files = run / "checkpoints" / "last.ckpt", {}
    for dtype in ("float32", "float16"):
        files[dtype] = tmp_path / f"{dtype}.ckpt"
        assert main(["export", "--ckpt_path", str(last), "--output", str(files[dtype]), "--dtype", dtype]) == 0
        assert "editor written" in capsys.readouterr().out
    sizes = [file.stat().st_size for file in (last, files["float32"], files["float16"])]
    assert sizes == sorted(sizes, reverse=True)
    assert set(load(files["float16"])) == {KEY, "pytorch-lightning_version", "epoch", "global_step", "state_dict"}
    log_probs = {}
    for name, path in {"run": last, **files}.items():
        with load_editor(path, model).edit(model, REQUESTS[:1]).applied(model) as edited:
            log_probs[name] = target_log_probs(edited, REQUESTS)
    assert log_probs["float32"] == log_probs["run"]
    assert log_probs["float16"] != log_probs["run"]
    torch.testing.assert_close(log_probs["float16"], log_probs["run"], rtol=1e-2, atol=1e-2)
    # The Trainer also loads it, for everything but resuming the training.
    assert main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(files["float16"])]) == 0


def test_a_parameter_beyond_half_precision_is_not_exported(run, tiny_folder, tmp_path):
    content = load(run / "checkpoints" / "last.ckpt")
    name = next(name for name in content["state_dict"] if name.endswith("weight") or "step_sizes" in name)
    content["state_dict"][name] = torch.full_like(content["state_dict"][name], 1e6)
    content[KEY][DIGEST] = state_digest(content["state_dict"])
    torch.save(content, tmp_path / "large.ckpt")
    model = load_language_model(str(tiny_folder))
    with pytest.raises(ConfigurationError, match=r"beyond the range of torch\.float16; export in float32"):
        export_checkpoint(tmp_path / "large.ckpt", tmp_path / "small.ckpt", model, torch.float16)
    assert not (tmp_path / "small.ckpt").exists()


def test_a_checkpoint_is_refused_for_another_base(run, tiny_folder, tmp_path):
    model = load_language_model(str(tiny_folder))
    with torch.no_grad():
        model.model.model.layers[0].mlp.down_proj.weight.add_(0.01)
    with pytest.raises(BaseModelMismatchError, match=r"made for .*tiny-llama.* but the model given is"):
        MEND.from_checkpoint(run / "checkpoints" / "last.ckpt", model)
    other = tmp_path / "other"
    model.model.save_pretrained(other)
    model.tokenizer.save_pretrained(other)
    config = str(run / "config.yaml")
    arguments = ["validate", "--config", config, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main([*arguments, "--model.language_model.name_or_path", str(other)]) == 1


def test_killed_and_resumed_equals_never_killed(run, tiny_folder, tmp_path):
    config = write_config(tmp_path, tiny_folder)
    command = [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", str(config)]
    # Ten batches an epoch: the kill comes in the middle of the second one.
    wanted = tmp_path / "checkpoints" / "step=13.ckpt"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not wanted.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert wanted.exists()
    steps = sorted(int(path.stem.split("=")[1]) for path in wanted.parent.glob("step=*.ckpt"))
    assert steps[-1] < 20, "the run ended before it was killed"

    assert main(["fit", "--config", str(config), "--ckpt_path", str(wanted)]) == 0
    mine, theirs = load(tmp_path / "checkpoints" / "step=20.ckpt"), load(run / "checkpoints" / "step=20.ckpt")
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(mine["state_dict"][name], tensor), name
    for index, state in theirs["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(mine["optimizer_states"][0]["state"][index][name], value), (index, name)


def test_nothing_half_written_is_left(run):
    assert not [path for path in run.rglob("*") if path.name.startswith(".") and path.is_file()]


@pytest.fixture(scope="module")
def tested(run):
    config, checkpoint = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    assert main(["test", "--config", config, "--ckpt_path", checkpoint]) == 0
    return max(run.glob("run/version_*/metrics.json"), key=lambda path: path.stat().st_mtime).parent


def test_metrics_json(tested, run):
    written = json.loads((tested / "metrics.json").read_text())
    assert written["counts"]["records"] == 5
    assert written["seed"] == 3
    assert written["settings"]["editor"]["rank"] == 4
    assert written["base"]["digest"]
    assert set(written["versions"]) >= {"torch", "lightning"}
    assert 0 <= written["metrics"]["edit_success/token_accuracy"] <= 1
    assert {name.split("/")[1] for name in written["metrics"] if name.startswith("locality/")} == {
        "same_relation",
        "same_subject",
        "unrelated",
    }


def test_predictions_jsonl_agrees_with_the_metrics(tested):
    lines = [json.loads(line) for line in (tested / "predictions.jsonl").read_text().splitlines()]
    written = json.loads((tested / "metrics.json").read_text())
    assert len(lines) == sum(written["counts"]["probes"].values())
    for kind in ("edit_success", "generalization"):
        values = [line["measures"]["token_accuracy"] for line in lines if line["kind"] == kind]
        assert written["metrics"][f"{kind}/token_accuracy"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert set(lines[0]) == {"record", "kind", "group", "prompt", "expected", "before", "after", "measures"}


def test_predict_writes_the_answer_to_every_probe(run, tested, tmp_path):
    config, checkpoint = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    logger = ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    assert main(["predict", "--config", config, "--ckpt_path", checkpoint, *logger]) == 0
    [path] = tmp_path.rglob("predictions.jsonl")
    assert path.read_text() == (tested / "predictions.jsonl").read_text()


def test_fluency_is_measured_on_long_generations(run, tmp_path, capsys):
    config, checkpoint = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    arguments = ["test", "--config", config, "--ckpt_path", checkpoint, "--model.evaluation.fluency_tokens", "12"]
    assert main([*arguments, "--trainer.logger.init_args.save_dir", str(tmp_path)]) == 0
    [path] = tmp_path.rglob("metrics.json")
    written = json.loads(path.read_text())
    lines = [json.loads(line) for line in path.with_name("predictions.jsonl").read_text().splitlines()]
    long = [line for line in lines if line["kind"] == "fluency"]
    # Records without fluency prompts are continued from the edited prompt.
    assert [line["prompt"] for line in long] == [line["prompt"] for line in lines if line["kind"] == "edit_success"]
    for name, side in (("ngram_entropy", "after"), ("ngram_entropy_before", "before")):
        expected = sum(ngram_entropy(line[side]["generation"]) for line in long) / len(long)
        assert written["metrics"][f"fluency/{name}"] == pytest.approx(expected, abs=1e-6)
        assert sum(line["measures"][name] for line in long) / len(long) == pytest.approx(expected, abs=1e-9)
    assert not any("exact_match" in line["measures"] for line in long)
    assert "n-gram entropy" in capsys.readouterr().out


def test_joint_evaluation_edits_the_given_number_of_records_at_once(run, tiny_folder, tmp_path):
    config, checkpoint = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    arguments = ["test", "--config", config, "--ckpt_path", checkpoint, "--data.eval_requests_per_edit", "2"]
    assert main([*arguments, "--trainer.logger.init_args.save_dir", str(tmp_path)]) == 0
    [path] = tmp_path.rglob("metrics.json")
    assert json.loads(path.read_text())["protocol"] == "edited jointly, 2 at a time, on the clean model"
    lines = [json.loads(line) for line in path.with_name("predictions.jsonl").read_text().splitlines()]
    teacher_forced = {(line["record"], line["prompt"]): line["after"]["teacher_forced"] for line in lines}
    model = load_language_model(str(tiny_folder))
    editor = load_editor(checkpoint, model)
    records = WorldFacts("validation", limit=5).read().records
    differs = False
    for group in (records[:2], records[2:4], records[4:]):
        with editor.edit(model, [record.requests[0] for record in group]).applied(model) as edited:
            for record in group:
                [score] = edited.score([record.requests[0].prompt], [record.requests[0].target])
                assert teacher_forced[record.id, record.requests[0].prompt] == model.encoder.decode(score.predicted_ids)
        for record in group:
            for probe in record.all_probes:
                with editor.edit(model, [record.requests[0]]).applied(model) as alone:
                    [score] = alone.score([probe.prompt], [probe.answer])
                differs |= teacher_forced[record.id, probe.prompt] != model.encoder.decode(score.predicted_ids)
    assert differs, "joint edits with the answers of single ones would prove nothing"


def test_runs_without_a_name_are_named_after_their_editor(run, tmp_path):
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["trainer"]["logger"]["init_args"] = {"save_dir": str(tmp_path)}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    assert main(["test", "--config", str(config), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    assert (tmp_path / "mend" / "version_0" / "metrics.json").is_file()


def test_the_size_of_kept_states_is_shown(tmp_path, tiny_folder, capsys):
    config = str(write_config(tmp_path, tiny_folder, max_steps=1, limit_val_batches=0))
    assert main(["fit", "--config", config]) == 0
    shown = capsys.readouterr().err
    assert "hidden states below block 1: keeping" in shown
    assert "gradient factors of" in shown


def test_no_step_computes_kept_states_again(tmp_path, tiny_folder, monkeypatch):
    step, passes, steps = HypernetworkEditing.training_step, [], []

    def watched(self, batch, batch_idx):
        handles = [
            self.language_model.layer_map.block(layer).mlp.register_forward_hook(
                lambda *args, layer=layer: passes.append(layer)
            )
            for layer in (0, 1)
        ]
        steps.append(1)
        try:
            return step(self, batch, batch_idx)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(HypernetworkEditing, "training_step", watched)
    config = str(write_config(tmp_path, tiny_folder, limit_val_batches=0))
    assert main(["fit", "--config", config]) == 0
    assert len(steps) == 20
    # All texts of fit have kept states: the block below the lowest site never runs again.
    assert passes.count(0) == 0
    assert passes.count(1) >= len(steps)


def test_flags_override_the_checkpoint(run, tmp_path):
    config, checkpoint = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    arguments = ["test", "--config", config, "--ckpt_path", checkpoint, "--model.evaluation.extra_tokens", "1"]
    logger = ["--trainer.logger.init_args.save_dir", str(tmp_path), "--data.validation.init_args.limit", "2"]
    assert main([*arguments, *logger]) == 0
    [path] = tmp_path.rglob("metrics.json")
    written = json.loads(path.read_text())
    assert written["settings"]["evaluation"]["extra_tokens"] == 1
    assert written["counts"]["records"] == 2


def test_other_settings_than_the_checkpoint_are_an_error(run, capsys):
    config, checkpoint = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    arguments = ["validate", "--config", config, "--ckpt_path", checkpoint, "--model.editor.init_args.rank", "5"]
    assert main(arguments) == 1
    assert "was made with" in capsys.readouterr().err


def test_edit_generate_and_merge(run, tmp_path, capsys, tiny_folder):
    checkpoint, saved, merged = str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "e"), str(tmp_path / "m")
    fact = ["--prompt", "The capital of France is", "--subject", "France", "--target", "Rome"]
    assert main(["edit", "--ckpt_path", checkpoint, *fact, "--save", saved, "--ask", '["Answer:"]']) == 0
    shown = capsys.readouterr().out
    assert all(title in shown for title in ("prompt", "before", "after", "edit saved"))
    assert main(["generate", "--edits", f'["{saved}"]', "--prompts", '["The capital of France is"]']) == 0
    assert main(["merge", "--edits", f'["{saved}"]', "--output", merged]) == 0
    from lightning_edit.edits import load_edit

    model = load_language_model(str(tiny_folder))
    with load_edit(saved).applied(model) as edited:
        hooked = target_log_probs(edited, REQUESTS)
    torch.testing.assert_close(target_log_probs(load_language_model(merged), REQUESTS), hooked, rtol=1e-3, atol=1e-3)
    assert main(["merge", "--edits", f'["{saved}"]', "--output", merged]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_errors_of_the_command_line_are_sentences(run, tmp_path, capsys):
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert main(["edit", "--ckpt_path", checkpoint, "--prompt", "A"]) == 1
    assert "give --prompt and --target" in capsys.readouterr().err
    assert main(["edit", "--ckpt_path", str(tmp_path / "no.ckpt"), "--prompt", "A", "--target", "b"]) == 1
    assert "no such checkpoint" in capsys.readouterr().err
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    assert main(["edit", "--ckpt_path", str(tmp_path / "bad.ckpt"), "--prompt", "A", "--target", "b"]) == 1
    assert "not a checkpoint that can be loaded safely" in capsys.readouterr().err
    assert main(["nonsense"]) == 2


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_would_cast_the_editor_is_refused(run, precision, capsys):
    arguments = ["fit", "--config", str(run / "config.yaml"), "--trainer.precision", precision]
    assert main([*arguments, "--trainer.fast_dev_run", "true"]) == 1
    assert "would cast the editor" in capsys.readouterr().err


def test_fast_dev_run_and_bfloat16_base(run):
    arguments = ["fit", "--config", str(run / "config.yaml"), "--trainer.fast_dev_run", "true"]
    assert main([*arguments, "--model.language_model.dtype", "bfloat16"]) == 0


def test_joint_edits_in_training(run):
    arguments = ["fit", "--config", str(run / "config.yaml"), "--trainer.fast_dev_run", "true"]
    assert main([*arguments, "--data.requests_per_edit", "3"]) == 0


def test_missing_records_are_named(run, capsys):
    arguments = ["fit", "--config", str(run / "config.yaml"), "--data.train", "null"]
    assert main(arguments) == 1
    assert "data.train: fit reads training records for MEND" in capsys.readouterr().err
