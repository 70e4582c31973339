"""Learning curves, W&B dashboards and the sweep file."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from lightning_edit.cli import main
from lightning_edit.curves import read_curves
from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.shipped import configs_folder
from tests.modules.test_training import write_config

ROWS = "epoch,step,train/loss,val/score\n0,1,2.5,\n0,2,nan,\n0,2,,0.75\n1,4,1.25,0.875\n"


def test_curves_are_read_by_name(tmp_path):
    (tmp_path / "run" / "version_0").mkdir(parents=True)
    (tmp_path / "run" / "version_0" / "metrics.csv").write_text(ROWS)
    assert read_curves(tmp_path / "run") == {"train/loss": ([1, 4], [2.5, 1.25]), "val/score": ([2, 4], [0.75, 0.875])}
    with pytest.raises(SourceNotFoundError, match=r"no metrics\.csv; name the folder of one run"):
        read_curves(tmp_path / "none")
    (tmp_path / "run" / "version_1").mkdir()
    (tmp_path / "run" / "version_1" / "metrics.csv").write_text("epoch,step,a\n0,x,1\n")
    with pytest.raises(SourceNotFoundError, match="2 runs"):
        read_curves(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="not the metrics of a run"):
        read_curves(tmp_path / "run" / "version_1")


def test_the_command_draws_runs_side_by_side(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(ROWS)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    output = tmp_path / "curves.svg"
    assert main(["plot", *runs, "--measures", "val/score", "--output", str(output)]) == 0
    picture = output.read_text()
    assert "val/score" in picture
    assert picture.count(str(tmp_path)) >= 2, "both runs are in the legend"
    assert main(["plot", "--runs", runs[0], "--measures", "val/nothing", "--output", str(output)]) == 1
    assert "there are train/loss, val/score" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["training", "comparison"])
def test_a_dashboard_is_written_as_its_specification(tmp_path, name, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("HOME", str(tmp_path))
    output = tmp_path / "dashboard.json"
    assert main(["dashboard", "--config", f"@{name}", "--project", "mine", "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    described = yaml.safe_load((configs_folder() / "dashboard" / f"{name}.yaml").read_text())
    assert (written["project"], written["displayName"]) == ("mine", described["name"])
    sections = written["spec"]["section"]["panelBankConfig"]["sections"]
    for section, expected in zip(sections, described["sections"], strict=False):
        assert section["name"] == expected["name"]
        titles = [panel["config"]["chartTitle"] for panel in section["panels"]]
        assert titles == [panel["title"] for panel in expected["panels"]]
        metrics = [panel["config"]["metrics"] for panel in section["panels"]]
        assert metrics == [panel.get("y") or panel.get("bar") or [] for panel in expected["panels"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: x", "expected a name and a list of sections"),
        ("{name: x, sections: [{name: y}]}", r"sections\[0\]: expected a name and a list of panels"),
        ("{name: x, sections: [{name: y, panels: [{title: z}]}]}", "a panel has a title and one of y, regex, bar"),
        ("{name: x, sections: [{name: y, panels: [{y: [a], bar: [b]}]}]}", "a panel has a title and one of"),
        ("{", "not a readable YAML file"),
    ],
)
def test_a_file_that_is_no_dashboard_is_an_error(tmp_path, capsys, content, message):
    pytest.importorskip("wandb_workspaces")
    path = tmp_path / "dashboard.yaml"
    path.write_text(content)
    assert main(["dashboard", "--config", str(path), "--output", str(tmp_path / "x.json")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x.json").exists()


def test_the_dashboards_curves_are_those_that_runs_log(tmp_path, tiny_folder):
    config = write_config(tmp_path, tiny_folder)
    content = yaml.safe_load(config.read_text())
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logged")}}
    content["trainer"].update(logger=logger, max_steps=2, log_every_n_steps=1, val_check_interval=2)
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config)]) == 0
    curves = read_curves(tmp_path / "logged")
    described = yaml.safe_load((configs_folder() / "dashboard" / "training.yaml").read_text())
    panels = [panel for section in described["sections"] for panel in section["panels"]]
    for name in (name for panel in panels for name in panel.get("y", ())):
        assert name in curves, name
    for pattern in ("val/locality/.*self_agreement", "train/update_norm/.*"):
        assert pattern in [panel.get("regex") for panel in panels]
        assert any(re.fullmatch(pattern, name) for name in curves), pattern


def test_every_parameter_of_the_sweep_is_an_option(capsys):
    sweep = yaml.safe_load((configs_folder() / "sweep" / "mend.yaml").read_text())
    assert sweep["command"][0] == "lightning-edit"
    assert sweep["command"][-1] == "${args}"
    options = [
        f"--{name}={(setting.get('values') or [setting.get('min')])[0]}"
        for name, setting in sweep["parameters"].items()
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*sweep["command"][1:-1], *options, "--print_config"])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    for name, setting in sweep["parameters"].items():
        value = shown["model"]["init_args"] if name.startswith("model.") else shown["data"]
        for part in name.split(".")[1:]:
            value = value[part]
        assert value == (setting.get("values") or [setting.get("min")])[0]


def test_a_wandb_run_starts_without_warnings(tmp_path):
    code = (
        "from lightning_edit.callbacks import WandbDashboard\n"
        f"logger = WandbDashboard(save_dir={str(tmp_path)!r}, name='run', offline=True)\n"
        "logger.log_metrics({'a': 1.0})\n"
        "logger.experiment.finish()\n"
    )
    environment = {**os.environ, "WANDB_SILENT": "true"}
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "WARNING" not in completed.stdout + completed.stderr
