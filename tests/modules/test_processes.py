"""Two processes against one: the same gradients, statistics and measures at the same global batch."""

import json

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lightning_edit.cli import main
from tests.modules.test_training import write_config
from tests.two_processes import run_in_two_processes


class KeepsState(Callback):
    """Writes the editor's state of every process."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        state = {name: value.clone() for name, value in pl_module.editor.state_dict().items()}
        torch.save(state, f"{self.folder}/rank-{trainer.global_rank}.pt")


def run(processes, *commands):
    if processes == 1:
        assert all(main(command) == 0 for command in commands)
    else:
        run_in_two_processes(*commands)


@pytest.fixture(scope="module", params=["MEND", "MALMEN", "SERAC", "Scoped"])
def runs(request, tmp_path_factory, tiny_folder):
    """The folders of a run in one process and of one in two, after one step and a test of seven records."""
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"{request.param}-{processes}")
        folders[processes] = folder
        config = write_config(folder, tiny_folder, devices=processes, max_steps=1, limit_val_batches=0)
        content = yaml.safe_load(config.read_text())
        module = content["model"]["init_args"]
        module["editor"] = {"class_path": f"lightning_edit.editors.{request.param}", "init_args": {"rank": 4}}
        module["editor"]["init_args"].update({"sites": [1, 2]} if request.param != "SERAC" else {"adapted_layers": 2})
        if request.param == "Scoped":
            content["model"]["class_path"] = "lightning_edit.modules.ScopedEditing"
            mend = {"class_path": "lightning_edit.editors.MEND", "init_args": module["editor"]["init_args"]}
            module["editor"]["init_args"] = {"editor": mend}
        if request.param == "SERAC":
            content["model"]["class_path"] = "lightning_edit.modules.MemoryEditing"
            del module["factor_gigabytes"]
        content["trainer"]["callbacks"] += [
            {"class_path": "lightning_edit.callbacks.RunArtifacts"},
            {"class_path": "tests.modules.test_processes.KeepsState", "init_args": {"folder": str(folder)}},
        ]
        content["trainer"]["strategy"] = "ddp" if processes == 2 else "auto"
        content["data"]["batch_size"] = 4 // processes
        if request.param == "MALMEN":
            content["data"].update(batch_size=2 // processes, requests_per_edit=3)
        content["data"]["validation"]["init_args"]["limit"] = 7
        content["data"]["eval_batch_size"] = 2
        config.write_text(yaml.safe_dump(content))
        last = str(folder / "checkpoints" / "last.ckpt")
        named = ["--config", str(config)]
        run(processes, ["fit", *named], ["test", *named, "--ckpt_path", last])
    return folders


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_gradient_is_that_of_one_process(runs):
    one, two = (checkpoint(runs[processes])["optimizer_states"][0]["state"] for processes in (1, 2))
    assert len(one) == len(two) > 4
    moved = 0
    for index, state in one.items():
        # After one step Adam's first moment is a tenth of the gradient.
        expected, actual = state["exp_avg"], two[index]["exp_avg"]
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5 * max(scale, 1e-8))
        moved += scale > 0
    # The rest has no gradient at the start: one factor of each pair is zero there, so nothing reaches the other.
    assert moved >= len(one) // 2


def test_the_running_statistics_are_those_of_one_process(runs):
    one, two = (checkpoint(runs[processes])["state_dict"] for processes in (1, 2))
    names = [name for name in one if ".statistics." in name]
    if not names:
        assert "editor.scope.projection.weight" in one, "only SERAC keeps no statistics"
    for name in names:
        assert float(one[name].abs().max()) > 0
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-9)


def test_all_processes_hold_the_same_state(runs):
    """The first process's state is sent to the others only before the next step, if at all."""
    first, second = (torch.load(runs[2] / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_every_record_is_scored_once_and_measures_agree(runs):
    written = {}
    for processes, folder in runs.items():
        [metrics] = folder.rglob("metrics.json")
        [predictions] = folder.rglob("predictions.jsonl")
        lines = [json.loads(line) for line in predictions.read_text().splitlines()]
        written[processes] = json.loads(metrics.read_text())
        asked = [(line["record"], line["kind"], line["group"], line["prompt"]) for line in lines]
        assert len(set(asked)) == len(asked)
        assert written[processes]["counts"]["records"] == 7
    one, two = written[1]["metrics"], written[2]["metrics"]
    assert set(one) == set(two)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        if name.endswith(("accuracy", "match", "containment", "agreement", "hit_rate")):
            # Counts: the same to the last digit that a log holds.
            assert two[name] == pytest.approx(value, abs=1e-7), name


def test_an_editor_without_parameters_and_a_process_without_records(tmp_path, tiny_folder):
    """Three records of one joint edit stay in one process; the other has no work, and nothing may wait for it."""
    written = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        config = write_config(folder, tiny_folder, devices=processes)
        content = yaml.safe_load(config.read_text())
        content["model"]["class_path"] = "lightning_edit.modules.EditingModule"
        content["model"]["init_args"] = {
            "language_model": {"name_or_path": str(tiny_folder)},
            "editor": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [-1]}},
        }
        content["trainer"]["strategy"] = "ddp" if processes == 2 else "auto"
        content["data"]["validation"]["init_args"]["limit"] = 3
        content["data"]["eval_requests_per_edit"] = 4
        config.write_text(yaml.safe_dump(content))
        run(processes, ["test", "--config", str(config)])
        [metrics] = folder.rglob("metrics.json")
        written[processes] = json.loads(metrics.read_text())
    assert written[2]["counts"] == written[1]["counts"]
    assert written[2]["counts"]["records"] == 3
    assert set(written[1]["metrics"]) == set(written[2]["metrics"])
    for name, value in written[1]["metrics"].items():
        assert written[2]["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
