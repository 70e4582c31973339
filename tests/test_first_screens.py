"""Console output at the start of a run."""

import subprocess
import sys

import pytest
import torch
import yaml

from lightning_edit.cli import main
from tests.modules.test_training import write_config


def test_fit_says_nothing_of_libraries_and_of_machines_that_are_not_there(tiny_folder, tmp_path):
    config = write_config(tmp_path, tiny_folder, max_steps=2, logger=False, default_root_dir=str(tmp_path / "run"))
    content = yaml.safe_load(config.read_text())
    content["trainer"].pop("accelerator")
    config.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "lightning_edit.cli", "fit", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "42 records" in result.stderr
    shown = (result.stderr + result.stdout).lower()
    for word in ("gpu", "tpu", "hpu", "litlogger", "total flops", "deprecat", "warning", "tip:"):
        assert word not in shown, shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_accelerator_that_is_not_there_is_an_error_of_one_line(tiny_folder, tmp_path, capsys):
    config = str(write_config(tmp_path, tiny_folder))
    assert main(["fit", "--config", config, "--trainer.accelerator", "gpu"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning-edit fit: trainer.accelerator: this machine has none of the kind asked for")
    assert line.endswith("use auto or cpu")
