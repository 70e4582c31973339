"""Comparison grids on a tiny model: running, resuming, sharding and reporting."""

import csv
import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
import yaml
from matplotlib.figure import Figure

from lightning_edit.cli import main
from lightning_edit.comparison import (
    Grid,
    build_report,
    draw_leaderboard,
    read_comparison,
    read_run,
    read_runs,
    write_report,
)
from lightning_edit.comparison.cells import FAILURE_FILE
from lightning_edit.comparison.estimate import Estimate, Size, duration
from lightning_edit.comparison.report import comma_separated, markdown
from lightning_edit.comparison.settings import WandbSettings
from lightning_edit.comparison.tracking import headline
from lightning_edit.data import WorldFacts
from lightning_edit.errors import ConfigurationError, RunInterruptedError, SourceNotFoundError
from lightning_edit.judges import Judge
from lightning_edit.models import load_language_model
from lightning_edit.modules.evaluation import Evaluator
from lightning_edit.modules.locate import LocateEditing
from lightning_edit.modules.questions import Reply
from lightning_edit.modules.unedited_answers import UneditedAnswers
from lightning_edit.records import Answer
from lightning_edit.shipped import shipped_file
from tests.tiny_models import language_model


def configured(folder, tiny_folder, **changes):
    for name, content in {
        "ice": {"class_path": "lightning_edit.editors.ICE"},
        "step": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [1, 2]}},
        "rome": {"class_path": "lightning_edit.editors.ROME", "init_args": {"layers": [1], "search": {"steps": 2}}},
        "broken": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [99]}},
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"The capital of country {n} is city {n * 7}.\nIt lies by the sea." for n in range(80)))
    facts = {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": "validation"}}
    content = {
        "output": str(folder / "grid"),
        "language_model": {"name_or_path": str(tiny_folder)},
        "corpus": {"source": str(text), "tokens": 1200, "length": 32},
        "records": 3,
        "evaluation": {"fluency_tokens": 4, "wild": {"contexts": ["instruction"], "new_tokens": 4}},
        "editors": {
            "ICE": {"editor": "ice.yaml"},
            "step": {"editor": "step.yaml"},
            "ROME": {"editor": "rome.yaml", "skip": {"again": "it is on the other one already"}},
            "broken": {"editor": "broken.yaml"},
        },
        "data": {"facts": facts, "again": {**facts, "init_args": {"split": "validation", "seed": 1}}},
        "protocols": {
            "independent": {},
            "joint": {"requests_per_edit": 0, "editors": ["step"]},
            "sequential": {"sequential": True, "every": 1, "editors": ["step"]},
        },
        "resamples": 200,
        **changes,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def grid(tmp_path_factory, tiny_folder):
    """A finished grid; tests read it and leave it alone."""
    folder = tmp_path_factory.mktemp("grid")
    path = configured(folder, tiny_folder)
    assert main(["compare", "--config", str(path)]) == 0
    return folder


def test_every_cell_is_an_ordinary_test_run(grid):
    runs = {(run.editor, run.data, run.protocol): run for run in read_runs([grid / "grid"])}
    assert len(runs) == 12
    done = [run for run in runs.values() if not run.problem]
    assert len(done) == 9
    for run in done:
        assert (run.folder / "metrics.json").is_file()
        assert run.summary["counts"]["records"] == 3
        costs = run.summary["costs"]
        assert costs["seconds_per_edit"] > 0
        assert costs["edit_bytes"] > 0
        assert "edit_success/wild_instruction" in run.summary["metrics"]
        assert "edit_success/wild_chat" not in run.summary["metrics"]
    assert runs["step", "facts", "joint"].summary["protocol"] == "edited jointly, 3 at a time, on the clean model"
    assert runs["step", "facts", "sequential"].summary["protocol"].startswith("edited one after another")
    assert runs["ROME", "again", "independent"].problem == "skipped: it is on the other one already"
    assert "layer 99 does not exist" in runs["broken", "facts", "independent"].problem


def test_overhead_outside_editing_and_evaluation_is_reported(grid):
    comparison = Grid(read_comparison(grid / "grid.yaml"))
    known = {cell.name: cell.overhead for cell in comparison.cells if cell.overhead is not None}
    assert len(known) == 9
    for seconds, beside in known.values():
        assert 0 < beside < seconds
    total, beside = map(sum, zip(*known.values(), strict=True))
    assert comparison.overhead().startswith(f"9 cells took {duration(total)}, {beside / total:.1%}")


def test_the_measures_are_those_of_the_run(grid):
    run = read_run(grid / "grid" / "cells" / "facts" / "independent" / "step")
    report = build_report([run], resamples=50)
    for column, interval in zip(report.columns, report.intervals[0], strict=True):
        if column.kinds == ("edit_success",):
            assert interval.mean == pytest.approx(run.summary["metrics"][f"edit_success/{column.measure}"], abs=1e-5)
    values = [value for one in run.values(["locality"], "self_agreement").values() for value in one]
    place = [column.title for column in report.columns].index("locality")
    assert report.intervals[0][place].mean == pytest.approx(sum(values) / len(values))


def test_knowedits_columns_follow_its_definitions(grid):
    run = read_run(grid / "grid" / "cells" / "facts" / "independent" / "step")
    report = build_report([run], "knowedit", resamples=50)
    rows = {column.title: row for column, row in zip(report.columns, report.intervals[0], strict=True)}
    metrics = run.summary["metrics"]
    success = (metrics["edit_success/token_accuracy"] + metrics["generalization/token_accuracy"]) / 2
    assert rows["success"].mean == pytest.approx(100 * success, abs=1e-3)
    groups = [value for name, value in metrics.items() if name.startswith("locality/") and "self_agreement" in name]
    assert len(groups) > 1
    assert rows["locality"].mean == pytest.approx(100 * sum(groups) / len(groups), abs=1e-3)


def test_stopped_grid_resumes_and_retries_failed_cells_only(tmp_path, tiny_folder, monkeypatch):
    comparison = read_comparison(configured(tmp_path, tiny_folder))
    run_cell, started = Grid.run_cell, []

    def stopping(self, cell):
        if len(started) == 3:
            raise KeyboardInterrupt
        started.append(cell.name)
        run_cell(self, cell)

    monkeypatch.setattr(Grid, "run_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        Grid(comparison).run()
    monkeypatch.setattr(Grid, "run_cell", lambda self, cell: started.append(cell.name) or run_cell(self, cell))
    Grid(comparison).run()
    again = [name for name in started if started.count(name) > 1]
    assert again == []
    assert len(set(started)) == 11
    count = len(started)
    Grid(comparison).run()
    assert sorted(started[count:]) == ["broken on again, independent", "broken on facts, independent"]


def test_a_signal_in_the_last_batch_of_a_cell_stops_the_grid(tmp_path, tiny_folder, monkeypatch):
    comparison = read_comparison(configured(tmp_path, tiny_folder))
    evaluate = Evaluator.evaluate

    def killed(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *arguments)

    monkeypatch.setattr(Evaluator, "evaluate", killed)
    grid = Grid(comparison)
    with pytest.raises(RunInterruptedError, match="run the same command again") as stopped:
        grid.run()
    assert stopped.value.status == 143
    assert [cell.is_done for cell in grid.cells].count(True) == 1


def test_a_cell_that_was_stopped_has_no_numbers_of_other_settings(tmp_path, tiny_folder, monkeypatch):
    path = configured(tmp_path, tiny_folder, protocols={"independent": {"editors": ["step"]}})
    Grid(read_comparison(path)).run()
    path = configured(tmp_path, tiny_folder, protocols={"independent": {"editors": ["step"]}}, records=2)
    grid = Grid(read_comparison(path))
    assert not any(cell.is_done for cell in grid.cells)

    def stopped(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "evaluate", stopped)
        with pytest.raises(RunInterruptedError) as error:
            grid.run()
    assert error.value.status == 130
    assert not any(cell.is_done for cell in grid.cells)
    Grid(read_comparison(path)).run()
    assert all(cell.is_done for cell in grid.cells)
    assert all(read_run(cell.folder).summary["counts"]["records"] == 2 for cell in grid.cells)


def test_a_cell_that_fails_before_its_run_has_no_earlier_numbers(tmp_path, tiny_folder):
    protocols = {"independent": {"editors": ["step"]}}
    Grid(read_comparison(configured(tmp_path, tiny_folder, protocols=protocols))).run()
    path = configured(tmp_path, tiny_folder, protocols=protocols)
    (tmp_path / "step.yaml").write_text((tmp_path / "broken.yaml").read_text())
    grid = Grid(read_comparison(path))
    grid.run()
    assert all(read_run(cell.folder).problem.startswith("failed: layer 99") for cell in grid.cells)


def test_an_experiment_is_another_one_when_a_file_that_it_names_changes(tmp_path, tiny_folder):
    (tmp_path / "run.yaml").write_text("model: {editor: step.yaml}")
    identities = []
    for sites in ([1], [2]):
        path = configured(tmp_path, tiny_folder, editors={"trained": {"experiment": "run.yaml"}}, protocols={"p": {}})
        editor = {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": sites}}
        (tmp_path / "step.yaml").write_text(yaml.safe_dump(editor))
        identities.append([cell.identity for cell in Grid(read_comparison(path)).cells])
    assert identities[0] != identities[1]


@pytest.mark.parametrize("configuration", [{"name_or_path": "x", "chat_template": False}, "model.yaml"])
def test_the_chat_template_can_be_chosen_for_a_whole_grid(tmp_path, tiny_folder, configuration):
    (tmp_path / "model.yaml").write_text("name_or_path: x\nchat_template: false")
    path = configured(tmp_path, tiny_folder, language_model=configuration)
    plain, chat = read_comparison(path), read_comparison(path, chat_template=True)
    assert (plain.language_model.chat_template, chat.language_model.chat_template) == (False, True)
    assert chat.language_model.name_or_path == "x"
    # Cells with other prompts are other cells.
    assert Grid(plain).cells[0].identity != Grid(chat).cells[0].identity


def test_the_unedited_model_is_asked_each_probe_once(tmp_path, tiny_folder, monkeypatch):
    comparison = read_comparison(configured(tmp_path, tiny_folder))
    asked, ask_before = [], Evaluator.ask_before

    def counted(self, questions, passes=None):
        asked.extend({question.key for question in questions} - set(self._before))
        return ask_before(self, questions, passes)

    monkeypatch.setattr(Evaluator, "ask_before", counted)
    Grid(comparison).run()
    assert asked
    assert len(asked) == len(set(asked))


def test_a_later_process_takes_the_answers_of_the_unedited_model_from_the_folder(tmp_path, tiny_folder, monkeypatch):
    path = configured(tmp_path, tiny_folder)
    first = Grid(read_comparison(path), editors=["ICE"])
    first.run()
    outcomes = {cell.name: (cell.folder / "predictions.jsonl").read_bytes() for cell in first.cells}
    for cell in first.cells:
        (cell.folder / "metrics.json").unlink()
    asked, score = [], Evaluator._score

    def counted(self, scorer, questions, references, passes=None):
        if references is None:
            asked.extend(questions)
        return score(self, scorer, questions, references, passes)

    monkeypatch.setattr(Evaluator, "_score", counted)
    later = Grid(read_comparison(path), editors=["ICE"])
    later.run()
    assert not asked
    assert {cell.name: (cell.folder / "predictions.jsonl").read_bytes() for cell in later.cells} == outcomes
    assert len(later.answers) == len(first.answers)
    for key, reply in later.answers.items():
        assert reply.answer == first.answers[key].answer
        assert reply.target_ids == first.answers[key].target_ids
        kept = first.answers[key].head_input
        assert kept is None if reply.head_input is None else torch.equal(reply.head_input, kept)


def test_answers_of_another_model_or_of_other_texts_are_not_taken(tmp_path, tiny_folder):
    reply = Reply(Answer((1,), (-0.5,), generation="x"), (1,), torch.ones(1, 2))
    key = ("Question", ("answer",), 3, True)
    plain, folder = load_language_model(str(tiny_folder)), tmp_path / "unedited"
    UneditedAnswers.kept_in(folder, plain).add({key: reply})
    ending = load_language_model(str(tiny_folder))
    ending.model.generation_config.eos_token_id = 5
    for other, is_known in (
        (ending, False),
        (load_language_model(str(tiny_folder)), True),
        (load_language_model(str(tiny_folder), dtype="bfloat16"), False),
        (load_language_model(str(tiny_folder), separator=""), False),
        (language_model("gpt2"), False),
    ):
        answers = UneditedAnswers.kept_in(folder, other)
        answers.refresh()
        assert (key in answers) == is_known
    known = UneditedAnswers.kept_in(folder, plain)
    known.update({key: replace(reply, target_ids=(7,))})
    known.refresh()
    assert known[key].target_ids == (7,)  # what was used stays
    [path] = folder.rglob("*.safetensors")
    path.write_bytes(b"half a file")
    with pytest.raises(ConfigurationError, match=r"not a file of the unedited model's answers .* delete it"):
        UneditedAnswers.kept_in(folder, plain).refresh()
    blocked = tmp_path / "blocked"
    blocked.write_text("a file in place of the folder")
    answers = UneditedAnswers.kept_in(blocked, plain)
    with pytest.warns(UserWarning, match="answers are not kept"):
        answers.add({key: reply})
    assert answers[key] is reply


def test_a_judge_is_built_once_and_its_time_is_told_apart(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EDIT_ALLOW", "tests.comparison.test_grid")
    SlowJudge.built = 0
    wild = {"contexts": ["instruction"], "new_tokens": 2, "judge": {"class_path": f"{__name__}.SlowJudge"}}
    path = configured(tmp_path, tiny_folder, evaluation={"wild": wild}, protocols={"independent": {}})
    Grid(read_comparison(path), editors=["ICE"]).run()
    assert SlowJudge.built == 1
    for costs in (run.summary["costs"] for run in read_runs([tmp_path / "grid"])):
        assert costs["seconds_of_judge"] >= 0.3
        assert costs["seconds_per_probe"] > 0


class SlowJudge(Judge):
    """Accepts every answer after a delay."""

    built = 0

    def __init__(self):
        type(self).built += 1

    def judge(self, cases):
        time.sleep(0.3)
        return [1.0] * len(cases)


def test_shards_divide_the_cells(tmp_path, tiny_folder):
    comparison = read_comparison(configured(tmp_path, tiny_folder))
    parts = [{cell.name for cell in Grid(comparison, (number, 3)).cells} for number in (1, 2, 3)]
    assert set.union(*parts) == {cell.name for cell in Grid(comparison).cells}
    assert sum(map(len, parts)) == len(set.union(*parts))
    path = str(tmp_path / "grid.yaml")
    assert main(["compare", "--config", path, "--shard", "4/3"]) == 1
    assert main(["compare", "--config", path, "--plan", "true"]) == 0


def test_statistics_are_collected_once_for_two_editors_and_anew_for_another_text(tmp_path, tiny_folder, monkeypatch):
    editors = {"ROME": {"editor": "rome.yaml"}, "same": {"editor": "rome.yaml"}}
    protocols = {"independent": {}}
    collected, fit = [], LocateEditing.on_fit_end
    monkeypatch.setattr(LocateEditing, "on_fit_end", lambda self: collected.append(1) or fit(self))
    for tokens in (1200, 1200, 600):
        corpus = {"source": str(tmp_path / "text.txt"), "tokens": tokens, "length": 32}
        changes = {"editors": editors, "protocols": protocols, "corpus": corpus}
        Grid(read_comparison(configured(tmp_path, tiny_folder, **changes))).run()
    assert len(collected) == 2


def test_statistics_are_in_the_output(grid):
    [folder] = (path for path in (grid / "grid").glob("statistics-*") if path.is_dir())
    manifest = json.loads((folder / "statistics.json").read_text())
    assert manifest["corpus"]["tokens"] == 1184


def test_reports_in_every_form(grid, tmp_path):
    report = build_report(read_runs([grid / "grid"]), reference="ICE", resamples=50)
    table = markdown(report)
    assert "## facts, independent" in table
    assert "| broken | failed: " in table
    rows = list(csv.DictReader(comma_separated(report).splitlines()))
    assert len(rows) == 12
    assert {row["editor"] for row in rows} == {"ICE", "step", "ROME", "broken"}
    paths = write_report(report, tmp_path)
    names = ["leaderboard.md", "leaderboard.csv", "report.html", "report.json", "leaderboard.png"]
    assert [path.name for path in paths] == names
    assert paths[-1].read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "report.json").read_text())
    step = next(run for run in content["runs"] if (run["editor"], run["protocol"]) == ("step", "independent"))
    assert step["minus ICE"]["edit success"]["records"] == 3
    with pytest.raises(ConfigurationError, match="there is no editor 'none'"):
        build_report(read_runs([grid / "grid"]), reference="none")


def test_the_picture_has_a_row_for_each_editor_and_an_interval_for_each_number(grid, tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    report = build_report(read_runs([grid / "grid"]), reference="ICE", resamples=50)
    draw_leaderboard(report, tmp_path / "leaderboard.png")
    [figure] = figures
    first = next(axis for axis in figure.axes if axis.get_title(loc="left").startswith("facts, independent"))
    assert sorted(label.get_text() for label in first.get_yticklabels()) == ["ICE", "ROME", "step"]
    drawn = {round(float(line.get_xdata()[0]), 6) for line in first.lines if line.get_marker() == "o"}
    place = [column.title for column in report.columns].index("edit success")
    expected = {
        round(intervals[place].mean, 6)
        for run, intervals in zip(report.runs, report.intervals, strict=True)
        if (run.data, run.protocol) == ("facts", "independent") and not run.problem
    }
    assert drawn == expected


def test_groups_and_differences_have_intervals_in_every_table(grid):
    report = build_report(read_runs([grid / "grid"]), reference="ICE", resamples=50)
    run = next(run for run in report.runs if (run.editor, run.data, run.protocol) == ("step", "facts", "independent"))
    name = run.groups("locality")[0]
    values = run.values(("locality",), "self_agreement", name)
    flat = [value for of_record in values.values() for value in of_record]
    group = report.groups(run)["locality"][name]
    assert group.mean == pytest.approx(sum(flat) / len(flat))
    assert group.low <= group.mean <= group.high
    titles = [column.title for column in report.columns]
    difference = report.differences(run)[titles.index("locality")]
    table = markdown(report)
    assert "By group:" in table
    assert f"| locality: {name} |" in table
    assert "Minus ICE, on the same records:" in table
    [line] = [
        line
        for line in csv.DictReader(comma_separated(report).splitlines())
        if (line["editor"], line["data"], line["protocol"]) == ("step", "facts", "independent")
    ]
    assert float(line[f"locality: {name}"]) == pytest.approx(group.mean)
    assert float(line["locality minus ICE low"]) == pytest.approx(difference.low)
    assert line["locality minus ICE"] != ""


def test_the_command_reports_existing_runs(grid, tmp_path, capsys):
    cells = grid / "grid" / "cells" / "facts" / "independent"
    output = tmp_path / "report"
    assert main(["report", str(cells / "ICE"), str(cells / "step"), "--output", str(output)]) == 0
    assert (output / "report.html").is_file()
    with pytest.raises(SourceNotFoundError, match="no test run here"):
        read_runs([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"editors": {}}, "editors: name at least one"),
        ({"editors": {"a": {}}}, r"editors\.a: give one of editor, checkpoint and experiment"),
        ({"editors": {"a/b": {"editor": "ice.yaml"}}}, "names a folder"),
        ({"editors": {"a": {"editr": "x"}}}, r"editors\.a\.editr: unknown"),
        ({"protocols": {"p": {"editors": ["none"]}}}, r"protocols\.p\.editors: there is no editor none"),
        ({"records": "many"}, "records: expected int, found 'many'"),
        ({"recrods": 1}, "recrods: unknown"),
        ({"reference": "none"}, "reference: there is no editor none"),
        ({"data": {"again": {"class_path": "lightning_edit.data.None"}}}, None),
    ],
    ids=str,
)
def test_wrong_grid_raises_a_clear_error(tmp_path, tiny_folder, changes, message):
    path = configured(tmp_path, tiny_folder, **changes)
    if message is None:
        with pytest.raises(ConfigurationError, match=r"data.again: lightning_edit.data.None is not a subclass of"):
            Grid(read_comparison(path)).plan()
        return
    with pytest.raises(ConfigurationError, match=message):
        read_comparison(path)


def test_a_failure_is_kept_with_its_reason(grid):
    folder = grid / "grid" / "cells" / "facts" / "independent" / "broken"
    assert "layer 99 does not exist" in (folder / FAILURE_FILE).read_text()


def test_what_an_editor_cannot_do_is_marked_as_not_applicable(tmp_path, tiny_folder, caplog):
    no_subjects = tmp_path / "facts.jsonl"
    no_subjects.write_text(json.dumps({"prompt": "The capital of France is", "target": "Rome"}) + "\n")
    path = configured(
        tmp_path, tiny_folder, editors={"ROME": {"editor": "rome.yaml"}, "ICE": {"editor": "ice.yaml"}},
        data={
            "facts": {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": "validation"}},
            "own": {"class_path": "lightning_edit.data.Facts", "init_args": {"source": str(no_subjects)}},
        },
        protocols={"independent": {}, "joint": {"requests_per_edit": 0}},
    )  # fmt: skip
    assert main(["compare", "--config", str(path)]) == 0
    problems = {(run.editor, run.data, run.protocol): run.problem for run in read_runs([tmp_path / "grid"])}
    alone = "not applicable: ROME edits one request at a time, and the protocol edits records jointly"
    assert problems["ROME", "facts", "joint"] == alone
    for protocol in ("independent", "joint"):
        assert problems["ROME", "own", protocol].startswith("not applicable: ROME needs subjects, and no record of")
    assert not any(problem for (editor, *_), problem in problems.items() if editor == "ICE")
    assert alone in (tmp_path / "grid" / "leaderboard.md").read_text()
    again = Grid(read_comparison(path))
    assert not any(cell.is_open for cell in again.cells)
    assert "8 cells: 5 done, 3 skipped, 0 to run" in again.plan()
    fact = {"prompt": "The capital of France is", "target": "Rome", "subject": "France"}
    no_subjects.write_text(json.dumps(fact) + "\n")
    Grid(read_comparison(path)).run()
    cells = {(cell.editor, cell.data, cell.protocol): cell for cell in Grid(read_comparison(path)).cells}
    assert cells["ROME", "own", "independent"].is_done
    assert cells["ROME", "own", "joint"].ruled_out


def test_data_that_cannot_be_read_stop_no_other_cell(tmp_path, tiny_folder):
    path = configured(
        tmp_path, tiny_folder, editors={"ICE": {"editor": "ice.yaml"}}, protocols={"independent": {}},
        data={
            "missing": {"class_path": "lightning_edit.data.Facts", "init_args": {"source": "nowhere.json"}},
            "facts": {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": "validation"}},
        },
    )  # fmt: skip
    grid = Grid(read_comparison(path))
    assert "missing: cannot be read, cells that will fail: 1 (nowhere.json: no such file" in grid.plan()
    grid.run()
    problems = {cell.data: read_run(cell.folder).problem for cell in grid.cells}
    assert problems["facts"] == ""
    assert problems["missing"].startswith("failed: nowhere.json: no such file")


def test_without_plotly_everything_but_the_page_is_written(grid, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lightning_edit.comparison.writing.can_render", lambda: False)
    written = write_report(build_report(read_runs([grid / "grid"]), resamples=20), tmp_path)
    assert {path.name for path in written} >= {"leaderboard.md", "leaderboard.csv", "report.json"}
    assert not (tmp_path / "report.html").exists()
    assert "report.html was not written" in caplog.text


def test_the_plan_estimates_from_the_file_and_then_from_done_cells(tmp_path, tiny_folder, grid):
    editors = {"ICE": {"editor": "ice.yaml", "seconds_per_edit": 100.0}, "step": {"editor": "step.yaml"}}
    changes = {"editors": editors, "protocols": {"independent": {}}}
    path = configured(tmp_path, tiny_folder, **changes, seconds_per_probe=0.0)
    assert Grid(read_comparison(path)).plan().splitlines()[-1] == "about 10 min, and what step will take"
    path = configured(tmp_path, tiny_folder, **changes)
    assert Grid(read_comparison(path)).plan().splitlines()[-1] == "no time estimate yet"
    comparison = read_comparison(path)
    first = Grid(comparison)
    first.cells = first.cells[:1]
    first.run()
    costs = read_run(first.cells[0].folder).summary["costs"]
    estimate, [ahead] = Estimate(comparison, first.cells), Grid(comparison).cells[2:3]
    expected = costs["seconds_per_edit"] * 2 + costs["seconds_per_probe"] * 7
    assert (ahead.editor, ahead.data) == ("ICE", "again")
    assert estimate.seconds(ahead, Size(3, 7, edits=2)) == pytest.approx(expected)
    assert estimate.seconds(Grid(comparison).cells[1], Size(3, 7, edits=3)) is None
    # Damaged files of a done cell are no reason to stop: it is an estimate.
    (first.cells[0].folder / "metrics.json").write_text("{")
    assert Grid(comparison).plan().splitlines()[-1] == "no time estimate yet"


def test_an_edit_of_several_records_counts_once():
    records = WorldFacts("validation", limit=7).read().records
    assert [Size.of(records, per_edit).edits for per_edit in (1, 0, 3)] == [7, 1, 3]
    assert Size.of(records, 3).records == 7


def test_cells_are_runs_of_one_wandb_group(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = configured(
        tmp_path, tiny_folder, editors={"ICE": {"editor": "ice.yaml"}, "broken": {"editor": "broken.yaml"}},
        data={"facts": {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": "validation"}}},
        protocols={"independent": {}}, wandb={"group": "tiny", "predictions": 5},
    )  # fmt: skip
    comparison = read_comparison(path)
    assert comparison.wandb == WandbSettings(group="tiny", predictions=5)
    Grid(comparison).run()
    run = read_run(tmp_path / "grid" / "cells" / "facts" / "independent" / "ICE")
    measures = headline(run)
    assert measures["headline/edit_success"] == pytest.approx(run.summary["metrics"]["edit_success/token_accuracy"])
    assert measures["headline/seconds_per_edit"] == run.summary["costs"]["seconds_per_edit"]
    assert set(measures) >= {f"headline/{name}" for name in ("generalization", "locality")}
    assert {name for section in read_dashboard("comparison") for name in section} <= {*measures, "headline/portability"}
    # The cell that fails is a run, too. W&B's file is binary, with names and values as they are.
    files = list((tmp_path / "grid" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    [content] = [text for file in files if b"headline/locality" in (text := file.read_bytes())]
    assert all(name.encode() in content for name in (*measures, "tiny", "ICE on facts, independent"))
    [table_file] = (tmp_path / "grid" / "wandb").rglob("predictions_*.table.json")
    table = json.loads(table_file.read_text())
    assert [row[3] for row in table["data"]] == [line["prompt"] for line in run.lines[:5]]


def read_dashboard(name):
    """The measures that each section of a shipped dashboard shows."""
    content = yaml.safe_load(shipped_file(name, ["dashboard"]).read_text())
    return [[measure for panel in section["panels"] for measure in panel["bar"]] for section in content["sections"]]


def test_the_cells_of_some_editors_and_data_sets_can_be_run_alone(tmp_path, tiny_folder):
    comparison = read_comparison(configured(tmp_path, tiny_folder))
    cells = Grid(comparison, editors=["step", "ICE"], data=["again"]).cells
    assert [(cell.editor, cell.data, cell.protocol) for cell in cells] == [
        ("ICE", "again", "independent"),
        ("step", "again", "independent"),
        ("step", "again", "joint"),
        ("step", "again", "sequential"),
    ]
    assert {cell.identity for cell in cells} <= {cell.identity for cell in Grid(comparison).cells}
    with pytest.raises(ConfigurationError, match="editors: the grid has no MEND; it has ICE, step, ROME, broken"):
        Grid(comparison, editors=["MEND"])


def test_methods_that_search_the_same_values_search_them_once_and_report_the_whole_time(tmp_path, tiny_folder):
    for name, original in (("first", False), ("second", True)):
        arguments = {"layers": [1], "search": {"steps": 3}, "original_keys": original}
        content = {"class_path": "lightning_edit.editors.ROME", "init_args": arguments}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    editors = {name: {"editor": f"{name}.yaml"} for name in ("first", "second")}
    path = configured(tmp_path, tiny_folder, editors=editors, protocols={"independent": {}})
    grid = Grid(read_comparison(path), data=["facts"])
    grid.run()
    first, second = (read_run(cell.folder).summary["costs"] for cell in grid.cells)
    assert first["seconds_of_reused_searches"] == 0 < second["seconds_of_reused_searches"]
    assert second["seconds_per_edit"] * 3 >= second["seconds_of_reused_searches"]
    assert len(list((tmp_path / "grid" / "values").iterdir())) == 3
