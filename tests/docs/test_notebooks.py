"""The notebooks run, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_all_notebooks_exist():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"edit_and_undo", "train_mend", "compare", "trace_and_locate"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.fixture
def model(tiny_folder, tmp_path, monkeypatch):
    """The tiny model, in a folder of its own."""
    matplotlib.use("Agg")
    monkeypatch.setenv("LIGHTNING_EDIT_NOTEBOOK_MODEL", str(tiny_folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_runs(path, model):
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
    if path.stem == "train_mend":
        assert namespace["trainer"].global_step == 10
        assert "val/score" in namespace["trainer"].callback_metrics
    if path.stem == "compare":
        assert len(namespace["runs"]) == 4
        assert not any(run.problem for run in namespace["runs"])
