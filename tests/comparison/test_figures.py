"""The plots of a report: curves of sequences and causal traces."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lightning_edit.cli import main
from lightning_edit.comparison import Comparison, EditorEntry, Protocol, Run, build_report, read_run, read_traces
from lightning_edit.comparison.cells import _identity_of
from lightning_edit.comparison.figures import figures
from lightning_edit.errors import ConfigurationError, SourceNotFoundError


def sequential_run(editor="A", rows=()):
    line = {"record": "r", "kind": "edit_success", "group": "", "prompt": "p", "expected": [["x"]]}
    line |= {"before": None, "after": None, "measures": {"token_accuracy": 1.0}}
    return Run(editor, "facts", "sequential", Path("x"), {"counts": {"records": 1}}, [line], sequence=rows)


def row(edits, locality=(1.0, 0.5), perplexity=None):
    measures = {f"locality/{name}/self_agreement": value for name, value in zip("ab", locality, strict=True)}
    more = {} if perplexity is None else {"perplexity": perplexity, "perplexity_before": 20.0}
    return {"edits": edits, "all": {"edit_success/token_accuracy": 1 / edits, **measures}, **more}


def curves(runs):
    """Title to the lines of the curves along sequences."""
    plots = {plot["layout"]["title"]["text"]: plot["data"] for plot in figures(build_report(runs, resamples=10))}
    return {title: lines for title, lines in plots.items() if "edited so far" in title or "perplexity" in title}


def test_a_sequence_has_a_curve_for_each_editor():
    shown = curves([sequential_run("A", [row(1), row(2), row(4)]), sequential_run("B", [row(1), row(2)])])
    success = shown["facts, sequential: edit success over all records edited so far"]
    assert [(line["name"], line["x"], line["y"]) for line in success] == [
        ("A", [1, 2, 4], [1.0, 0.5, 0.25]),
        ("B", [1, 2], [1.0, 0.5]),
    ]
    locality = shown["facts, sequential: locality over all records edited so far"]
    assert locality[0]["y"] == pytest.approx([0.75] * 3)
    assert not any("perplexity" in title for title in shown)


def test_perplexity_is_shown_against_the_unedited_models():
    [line] = curves([sequential_run(rows=[row(1, perplexity=20.0), row(2, perplexity=30.0)])])[
        "facts, sequential: perplexity"
    ]
    assert line["y"] == [1.0, 1.5]


def test_a_measure_that_is_not_finite_leaves_a_gap():
    rows = [row(1), row(2, locality=(None, 0.5)), row(3)]
    [line] = curves([sequential_run(rows=rows)])["facts, sequential: locality over all records edited so far"]
    assert line["x"] == [1, 3]


def test_a_sequence_that_was_measured_once_has_no_curve():
    assert not curves([sequential_run(rows=[row(5)])])


def test_the_grid_measures_a_sequence_as_often_as_its_protocol_says(tmp_path, tiny_folder):
    from tests.comparison.test_grid import configured

    path = configured(tmp_path, tiny_folder)
    arguments = ["compare", "--config", str(path), "--editors", "[step]", "--data", "[facts]"]
    assert main(arguments) == 0
    run = read_run(tmp_path / "grid" / "cells" / "facts" / "sequential" / "step")
    assert [one["edits"] for one in run.sequence] == [1, 2, 3]
    assert read_run(tmp_path / "grid" / "cells" / "facts" / "joint" / "step").sequence == []


def test_every_and_text_are_for_sequences():
    with pytest.raises(ConfigurationError, match=r"protocols\.all: every and text are for sequences"):
        Comparison({"ICE": EditorEntry("ice.yaml")}, {"facts": {}}, {"all": Protocol(every=1)})


def test_new_settings_keep_the_identity_of_existing_cells():
    assert _identity_of(Protocol()) == {"requests_per_edit": 1, "sequential": False, "editors": None}
    assert _identity_of(Protocol(sequential=True, every=2))["every"] == 2
    assert set(asdict(Protocol())) == {"requests_per_edit", "sequential", "editors", "every", "text"}


def test_the_report_shows_traces_that_a_command_wrote(tiny_folder, tmp_path):
    folder = tmp_path / "trace"
    fact = ["--prompt", "The capital of France is", "--subject", "France", "--samples", "2", "--window", "2"]
    assert main(["trace", "--name_or_path", str(tiny_folder), *fact, "--output", str(folder)]) == 0
    [trace] = read_traces([folder])
    [plot] = figures(build_report([sequential_run()], resamples=10), [trace])[-1:]
    assert [one["type"] for one in plot["data"]] == ["heatmap"] * 3
    [fact] = trace["facts"]
    assert plot["data"][1]["z"][0][0] == pytest.approx(fact["restored"]["mlp"][0][0] - fact["corrupted"])
    assert len(plot["data"][0]["y"]) == len(fact["tokens"])
    with pytest.raises(SourceNotFoundError, match=r"no traces\.json here"):
        read_traces([tmp_path])
    (folder / "traces.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigurationError, match="damaged"):
        read_traces([folder])
