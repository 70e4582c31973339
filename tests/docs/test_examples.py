"""The code of "Write your own" runs, and the pages on formats document every field that is written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_edit
from lightning_edit.cli import main
from lightning_edit.comparison import Comparison
from lightning_edit.components import argument_names
from lightning_edit.data import Facts
from lightning_edit.data.facts import FIELDS
from lightning_edit.editors import Editor
from lightning_edit.edits import EditSequence, load_edit
from tests.testers import REQUESTS
from tests.tiny_models import language_model

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def examples(tiny_folder, tmp_path, monkeypatch):
    """The files of the page, with the tiny model, in the current folder."""
    folder = tmp_path / "examples"
    shutil.copytree(DOCS / "examples", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace("smollm2-135m-instruct", str(tiny_folder)))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    # --allow sets this variable for the rest of the process.
    monkeypatch.setenv("LIGHTNING_EDIT_ALLOW", "")
    yield folder
    sys.modules.pop("my_extension", None)


def documented(page: str) -> set[str]:
    """The names in the first columns of a page's tables."""
    lines = re.findall(r"^\| (.*?) \|", (DOCS / "formats" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {name for line in lines for name in re.findall(r"`([\w./]+)`", line)}


def test_a_test_run_of_all_examples(examples):
    assert main(["test", "--config", "test.yaml"]) == 0
    summary = json.loads(Path("runs/mine/metrics.json").read_text())
    assert summary["counts"]["probes"] == {"edit_success/": 2, "locality/neighbour": 2}
    assert "first_token" in summary["metrics"]
    line = json.loads(Path("runs/mine/predictions.jsonl").read_text().splitlines()[0])
    assert set(summary) | set(line) <= documented("results.md")


def test_a_comparison(examples):
    assert main(["compare", "--config", "comparison.yaml", "--allow", "my_extension"]) == 0
    assert "| mine |" in Path("runs/mine-compared/leaderboard.md").read_text()
    [cell] = Path("runs/mine-compared/cells").rglob("cell.json")
    page = (DOCS / "formats" / "comparison.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in set(json.loads(cell.read_text())) - {"folder"})


def test_an_edit_of_a_custom_kind(examples, tiny_folder):
    command = ["edit", "--editor", "target-bias.yaml", "--allow", "my_extension", "--name_or_path", str(tiny_folder)]
    assert main([*command, "--prompt", "The capital of France is", "--target", "Rome", "--save", "edit"]) == 0
    edit = load_edit("edit")
    assert edit.kind == "bias"
    assert len(EditSequence([edit]).layers) == 1
    assert set(json.loads(Path("edit/edit.json").read_text())) <= documented("edits.md")
    # In a process that has not imported the module and cannot find it on its path.
    command = [sys.executable, "-P", "-m", "lightning_edit", "generate", "--edits", "edit", "--prompts", "Answer:"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["LIGHTNING_EDIT_ALLOW"] = ""
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "kind 'bias'; known are ['routed', 'weight']" in refused.stderr
    subprocess.run([*command, "--allow", "my_extension"], env=environment, check=True, capture_output=True)


def test_a_file_that_is_not_allowed_is_refused(examples, tiny_folder, capsys):
    command = ["edit", "--editor", "target-bias.yaml", "--name_or_path", str(tiny_folder)]
    assert main([*command, "--prompt", "a", "--target", "b"]) == 1
    assert "LIGHTNING_EDIT_ALLOW=my_extension" in capsys.readouterr().err


def test_the_normalized_step_has_the_given_length(examples):
    import my_extension

    edit = my_extension.NormalizedStep([-1], 0.5).edit(language_model("llama"), REQUESTS[:2])
    [delta] = edit.weight_deltas().values()
    assert float(delta.dense().norm()) == pytest.approx(0.5, rel=1e-4)


def test_the_documented_formats_of_facts_are_read(tmp_path):
    text = (DOCS / "formats" / "facts.md").read_text(encoding="utf-8")
    blocks = re.findall(r'=== "(.*?)"\n\n    ```\w+\n(.*?)\n    ```', text, re.DOTALL)
    suffixes = {"JSON Lines": "jsonl", "JSON": "json", "CSV": "csv"}
    assert [name for name, _ in blocks] == list(suffixes)
    for name, block in blocks:
        path = tmp_path / f"facts.{suffixes[name]}"
        path.write_text("\n".join(line.removeprefix("    ") for line in block.split("\n")), encoding="utf-8")
        assert [record.requests[0].target for record in Facts(str(path)).read().records] == ["Rome", "Oslo"]
    assert documented("facts.md") >= set(FIELDS)


def test_every_key_of_a_comparison_is_documented():
    keys = {field.name for field in dataclasses.fields(Comparison)}
    assert keys <= documented("comparison.md")


def test_every_editor_is_on_the_page_of_a_family():
    families = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "families").glob("*.md")}
    rows = families.pop("index").split("\n")
    for name, kind in editors_of_the_package().items():
        assert any(f"[lightning_edit.editors.{name}]" in text for text in families.values()), name
        [row] = [line for line in rows if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        capabilities, words = kind.capabilities, {True: "yes", False: "no"}
        expected = [
            capabilities.fit_reads,
            words[capabilities.needs_subject],
            words[capabilities.joint],
            words[capabilities.mergeable],
        ]
        assert [cell.strip() for cell in row.split("|")[3:-1]] == expected, name


@pytest.mark.parametrize("path", sorted((DOCS / "families").glob("*.md")), ids=lambda path: path.stem)
def test_settings_that_the_pages_name_exist(path):
    """Each section names settings of its own editor in the first columns of its tables."""
    for section in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        editors = re.findall(r"\[lightning_edit\.editors\.(\w+)\]", section)
        kind = editors_of_the_package().get(editors[0]) if editors else None
        rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        if kind is not None:
            named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
            assert named <= set(argument_names(kind)), (path.name, kind)


def editors_of_the_package() -> dict[str, type[Editor]]:
    public = {name: getattr(lightning_edit, name) for name in lightning_edit.__all__}
    return {
        name: one
        for name, one in public.items()
        if isinstance(one, type) and issubclass(one, Editor) and one is not Editor
    }
