"""Edits one after another, none of them undone."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.data import WorldFacts
from lightning_edit.editors import GRACE, ICE, MEMIT, GradientStep, TuningSettings, ValueSettings
from lightning_edit.edits import EditSequence
from lightning_edit.edits.base import losses_under, perplexity_of
from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.metrics import TokenAccuracy, edit_metrics
from lightning_edit.models.perplexity import losses_of_rows, perplexity
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.modules import EvaluationSettings, Evaluator, SequentialSettings
from lightning_edit.modules.sequential import SCHEDULE_FILE, SequentialProtocol
from lightning_edit.records import group_names
from tests.modules.test_training import write_config
from tests.tiny_models import FAMILIES, language_model

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture
def records():
    return WorldFacts("validation", limit=6).read().records


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def memit():
    """Samples its contexts itself."""
    return MEMIT(layers=[0, 1], covariance="identity", covariance_weight=0.1, search=ValueSettings(steps=3))


def sequence_of(records, folder, text=None, size=1, step_size=0.05, keep=False, editor=None, **settings):
    model = language_model("llama")
    sequential = SequentialSettings(text=text, tokens=512, folder=str(folder) if keep else None, **settings)
    evaluator = Evaluator(model, EvaluationSettings(generate=False, sequential=sequential))
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    return SequentialProtocol(model, editor or GradientStep([-1], step_size), evaluator, sequential, groups, folder)


def first_step(run):
    """Makes the first edit of a sequence."""
    return run.step([run.groups[0]])


_RUNS = {}


def kept_sequence_of(records, folder, **settings):
    """A run that keeps its folder; an earlier run in the same folder is closed first."""
    if folder in _RUNS:
        _RUNS.pop(folder).close()
    _RUNS[folder] = sequence_of(records, folder, keep=True, **settings)
    return _RUNS[folder]


def test_two_runs_in_one_folder_are_refused(records, tmp_path):
    run = sequence_of(records, tmp_path, keep=True)
    with pytest.raises(ConfigurationError, match="another run writes to"):
        sequence_of(records, tmp_path, keep=True)
    run.close()
    sequence_of(records, tmp_path, keep=True).close()


def accuracy(model, records, scorer):
    """Edit success by hand: the mean over the records of the share of right tokens."""
    requests = [record.requests[0] for record in records]
    scores = scorer.score([request.prompt for request in requests], [request.target for request in requests])
    right = [torch.tensor(score.predicted_ids) == torch.tensor(score.target_ids) for score in scores]
    return sum(float(row.float().mean()) for row in right) / len(right)


@pytest.mark.parametrize("size", [1, 2])
def test_every_edit_is_made_on_top_of_all_before_and_retention_is_measured(records, tmp_path, text, size):
    run = sequence_of(records, tmp_path, text, size, every=2)
    outcomes = [run.step([run.groups[number]]) for number in range(len(run.groups))]
    assert not any(outcomes[:-1])
    assert {outcome.record_id for outcome in outcomes[-1]} == {record.id for record in records}
    assert [row["edits"] for row in run.rows] == [2, 4, 6]
    # By hand: one edit after another, none of them undone.
    model, editor, sequence = run.model, GradientStep([-1], 0.05), EditSequence()
    rows = iter(run.rows)
    for start in range(0, len(records), size):
        group = records[start : start + size]
        sequence = sequence.then(editor.edit(model, [record.requests[0] for record in group], after=sequence))
        done = records[: start + size]
        if len(done) % 2:
            continue
        row = next(rows)
        with sequence.applied(model) as edited:
            assert row["all"]["edit_success/token_accuracy"] == pytest.approx(accuracy(model, done, edited), abs=1e-6)
            earlier = row["earlier"].get("edit_success/token_accuracy", math.nan)
            expected = accuracy(model, done[:-size], edited) if done[:-size] else math.nan
            assert earlier == pytest.approx(expected, abs=1e-6, nan_ok=True)
            assert row["perplexity"] == pytest.approx(perplexity_of(model, model, run._text), rel=1e-5)
    (site, norm), *_ = run.rows[-1]["relative_norm"].items()
    change = sum(edit.deltas[site].dense() for edit in sequence.edits)
    weight = model.layer_map.named_site(site).weight
    assert norm == pytest.approx(float(change.norm() / weight.norm()), rel=1e-4)
    assert [json.loads(line) for line in (tmp_path / SCHEDULE_FILE).read_text().splitlines()] == run.rows


def test_the_unedited_answers_are_taken_before_the_first_edit(records, tmp_path):
    run = sequence_of(records, tmp_path)
    fresh = Evaluator(run.model, EvaluationSettings(generate=False))
    for number in range(len(records)):
        outcomes = run.step([run.groups[number]])
    expected = fresh.ask_before(fresh.questions(records))
    assert [outcome.before.predicted_ids for outcome in outcomes] == [
        reference.answer.predicted_ids for reference in expected
    ]


@pytest.mark.parametrize("stopped_at", [1, 3, 6])
def test_a_stopped_sequence_resumes_where_it_stopped(records, tmp_path, text, monkeypatch, stopped_at):
    settings = {"text": text, "every": 2}
    first = kept_sequence_of(records, tmp_path / "whole", **settings)
    expected = [first.step([first.groups[number]]) for number in range(len(records))][-1]
    begun = kept_sequence_of(records, tmp_path / "cut", **settings)
    for number in range(stopped_at):
        begun.step([begun.groups[number]])
    again = kept_sequence_of(records, tmp_path / "cut", **settings)
    assert len(again.sequence) == stopped_at
    calls = []
    edit = again.editor.edit_checked_groups
    monkeypatch.setattr(
        again.editor, "edit_checked_groups", lambda *args, **kwargs: calls.append(1) or edit(*args, **kwargs)
    )
    outcomes = [again.step([again.groups[number]]) for number in range(len(records))][-1]
    assert len(calls) == len(records) - stopped_at
    assert [outcome.after.predicted_ids for outcome in outcomes] == [o.after.predicted_ids for o in expected]
    assert [row["edits"] for row in again.rows] == [2, 4, 6]
    for one, same in zip(again.rows, first.rows, strict=True):
        assert one["all"] == pytest.approx(same["all"], abs=1e-4)
        assert one["perplexity"] == pytest.approx(same["perplexity"], rel=1e-4)


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_stopped_sequence_of_located_edits_resumes_without_a_difference(records, tmp_path, stopped_at):
    first = kept_sequence_of(records, tmp_path / "whole", size=2, editor=memit())
    expected = [first.step([first.groups[number]]) for number in range(3)][-1]
    begun = kept_sequence_of(records, tmp_path / "cut", size=2, editor=memit())
    for number in range(stopped_at):
        begun.step([begun.groups[number]])
    again = kept_sequence_of(records, tmp_path / "cut", size=2, editor=memit())
    assert len(again.sequence) == stopped_at
    outcomes = [again.step([again.groups[number]]) for number in range(3)][-1]
    contexts = {str(edit.provenance.findings["contexts"]) for edit in again.sequence.edits}
    assert len(contexts) == 1
    for one, same in zip(outcomes, expected, strict=True):
        assert one.after.log_probs == pytest.approx(same.after.log_probs, abs=1e-3)


def test_a_request_that_cannot_be_edited_does_not_end_a_sequence(records, tmp_path, monkeypatch):
    from lightning_edit.editors import locate

    search = locate.search_values

    def broken(model, requests, *arguments):
        results = search(model, requests, *arguments)
        if requests[0] == records[1].requests[0]:
            results[0].problem = "its loss became nan"
        return results

    monkeypatch.setattr(locate, "search_values", broken)
    run = sequence_of(records[:3], tmp_path, editor=memit())
    with pytest.warns(UserWarning, match="1 of 1 requests are left out: its loss became nan"):
        outcomes = [run.step([run.groups[number]]) for number in range(3)]
    assert {outcome.record_id for outcome in outcomes[-1]} == {record.id for record in records[:3]}
    assert [len(edit.provenance.failed) for edit in run.sequence.edits] == [0, 1, 0]


def test_an_ended_sequence_stays_ended(records, tmp_path, text):
    settings = {"text": text, "step_size": 500.0, "every": 1, "stop_above": 2.0}
    run = kept_sequence_of(records, tmp_path, **settings)
    with pytest.warns(UserWarning, match="the sequence ends here"):
        expected = run.step([run.groups[0]])
    with pytest.warns(UserWarning, match="the sequence ends here"):
        again = kept_sequence_of(records, tmp_path, **settings)
    with pytest.warns(UserWarning, match="the sequence ends here"):
        outcomes = [again.step([again.groups[number]]) for number in range(len(records))]
    assert len(again.sequence) == 1
    assert [outcome.record_id for outcome in outcomes[0]] == [outcome.record_id for outcome in expected]
    assert not any(outcomes[1:])


def test_edits_of_other_requests_are_refused(records, tmp_path):
    begun = kept_sequence_of(records, tmp_path)
    begun.step([begun.groups[0]])
    with pytest.raises(ConfigurationError, match="edit of other requests, of another editor or with other statistics"):
        kept_sequence_of(records[::-1], tmp_path)


def test_a_longer_sequence_is_not_resumed(records, tmp_path, monkeypatch):
    run = kept_sequence_of(records, tmp_path, every=1)
    for number in range(4):
        run.step([run.groups[number]])
    written = (tmp_path / SCHEDULE_FILE).read_text()
    monkeypatch.setattr(Evaluator, "ask_before", lambda *arguments: pytest.fail("the unedited model was asked"))
    with pytest.raises(ConfigurationError, match="holds a longer sequence than the 2 edits"):
        kept_sequence_of(records[:2], tmp_path, every=1)
    with pytest.raises(ConfigurationError, match="edit of other requests"):
        kept_sequence_of(records[::-1], tmp_path, every=1)
    assert (tmp_path / SCHEDULE_FILE).read_text() == written


def test_a_resumed_sequence_returns_its_earlier_measures_once(records, tmp_path):
    run = kept_sequence_of(records, tmp_path, every=1)
    for number in range(2):
        run.step([run.groups[number]])
    assert [row["edits"] for row in run.new_measures()] == [1, 2]
    assert not run.new_measures()
    again = kept_sequence_of(records, tmp_path, every=1)
    for number in range(3):
        again.step([again.groups[number]])
    assert [row["edits"] for row in again.new_measures()] == [1, 2, 3]
    assert not again.new_measures()


@pytest.mark.parametrize("line", ['{"edits": 2, "all": {"edit_su', "[2]", '{"all": {}}'])
def test_measures_that_cannot_be_read_are_named(records, tmp_path, monkeypatch, line):
    run = kept_sequence_of(records, tmp_path, every=1)
    run.step([run.groups[0]])
    with (tmp_path / SCHEDULE_FILE).open("a") as file:
        file.write(line)
    monkeypatch.setattr(Evaluator, "ask_before", lambda *arguments: pytest.fail("the unedited model was asked"))
    with pytest.raises(ConfigurationError, match=rf"{SCHEDULE_FILE}, line 2: not the measures of a sequence"):
        kept_sequence_of(records, tmp_path, every=1)


def test_a_sequence_without_records_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="needs at least one record"):
        sequence_of([], tmp_path)


def test_a_sequence_resumes_with_statistics_that_were_moved(records, tmp_path):
    model, folders = language_model("llama"), [tmp_path / "one", tmp_path / "two"]
    moments = {site.name: torch.eye(site.fan_in) for site in model.layer_map.sites([0, 1])}
    for folder in folders:
        KeyStatistics(moments, Corpus("text", 8, 640, "digest"), model.name, model.fingerprint).save(folder)
    original, moved = (
        MEMIT(layers=[0, 1], statistics=str(folder), search=ValueSettings(steps=2)) for folder in folders
    )
    first_step(kept_sequence_of(records, tmp_path / "run", editor=original))
    assert len(kept_sequence_of(records, tmp_path / "run", editor=moved).sequence) == 1


def test_edits_with_other_statistics_are_refused(records, tmp_path):
    def fitted(tokens):
        editor, model = memit(), language_model("llama")
        moments = {site.name: torch.eye(site.fan_in) for site in model.layer_map.sites([0, 1])}
        corpus = Corpus("text", 8, tokens, "digest")
        editor.use_statistics(KeyStatistics(moments, corpus, model.name, model.fingerprint))
        return editor

    first_step(kept_sequence_of(records, tmp_path, editor=fitted(640)))
    assert len(kept_sequence_of(records, tmp_path, editor=fitted(640)).sequence) == 1
    for other in (fitted(641), memit()):
        with pytest.raises(ConfigurationError, match="with other statistics"):
            kept_sequence_of(records, tmp_path, editor=other)


def test_measures_on_another_text_are_refused(records, tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("Something else is said here, at some length. " * 40)
    first_step(kept_sequence_of(records, tmp_path, text=text, every=1))
    for changed in (str(other), None):
        with pytest.raises(ConfigurationError, match="was measured on another text"):
            kept_sequence_of(records, tmp_path, text=changed, every=1)
    assert len(kept_sequence_of(records, tmp_path, text=text, every=1).rows) == 1


def test_a_sequence_ends_where_the_model_breaks(records, tmp_path, text):
    run = sequence_of(records, tmp_path, text, step_size=500.0, every=1, stop_above=2.0)
    with pytest.warns(UserWarning, match="the sequence ends here"):
        outcomes = [run.step([run.groups[number]]) for number in range(len(records))]
    assert run.stopped
    assert len(run.sequence) == 1
    assert {outcome.record_id for outcome in outcomes[0]} == {records[0].id}
    assert not any(outcomes[1:])


def everything_in_scope():
    """A codebook whose radius covers every text."""
    tuning = TuningSettings(steps=5, learning_rate=0.5, skip_below=0, stop_below=0)
    return GRACE(site=-1, radius=1e6, tuning=tuning)


def test_a_sequence_of_routed_edits_is_stopped_by_the_edited_models_perplexity(records, tmp_path, text):
    def first_of(**settings):
        run = sequence_of(records[:2], tmp_path, text, editor=everything_in_scope(), every=1, **settings)
        first_step(run)
        return run

    run = first_of()
    [row] = run.rows
    with run.sequence.applied(run.model) as scorer:
        assert row["perplexity"] == pytest.approx(perplexity_of(scorer, run.model, run._text))
    ratio = row["perplexity"] / row["perplexity_before"]
    # The unedited model's ratio, 1, is not between the limits.
    assert abs(ratio - 1) > 1e-3
    with pytest.warns(UserWarning, match="the sequence ends here"):
        assert first_of(stop_above=ratio * 0.9995).stopped_after == 1
    assert first_of(stop_above=ratio * 1.0005).stopped_after is None


@torch.no_grad()
def test_rows_that_match_no_item_are_scored_by_the_layer_below(records, text):
    """A prompt in front of every text, with a codebook on top that answers nothing, or everything."""
    model, requests = language_model("llama"), records[0].requests
    rows = torch.tensor([model.encoder.encode(TEXT).ids[:48]])
    text_below = ICE().edit(model, requests)
    far, near = (GRACE(site=-1, radius=radius, tuning=TuningSettings(steps=2)) for radius in (1e-6, 1e6))
    with text_below.applied(model) as scorer:
        expected = losses_under(scorer, model, rows)
    assert not torch.allclose(expected, losses_of_rows(model, rows), atol=1e-3)
    with EditSequence([text_below, far.edit(model, requests)]).applied(model) as scorer:
        torch.testing.assert_close(losses_under(scorer, model, rows), expected)
    with EditSequence([text_below, near.edit(model, requests)]).applied(model) as scorer:
        assert not torch.allclose(losses_under(scorer, model, rows), expected, atol=1e-3)


@pytest.mark.parametrize("text", [TEXT, "東京は日本の首都です" * 30], ids=["words", "no spaces"])
@torch.no_grad()
def test_routed_rows_are_scored_with_tokenizers_that_strip_spaces(records, text):
    """Decoding from the middle of a text drops the space of its first token in SentencePiece."""
    model = language_model("llama", tokenizer="sentencepiece")
    rows = torch.tensor([model.encoder.encode(text).ids[:48]])
    near = everything_in_scope().edit(model, records[0].requests)
    with near.applied(model) as scorer:
        losses = losses_under(scorer, model, rows)
    assert not torch.allclose(losses[-10:], losses_of_rows(model, rows)[-10:], atol=1e-3)


def test_a_sequence_takes_the_runs_average_and_metrics(records, tmp_path):
    more = replace(records[0], probes=records[0].probes + (replace(records[0].probes[0], prompt="Its name is"),) * 3)
    run = sequence_of([more, *records[1:3]], tmp_path)
    names = group_names(run.groups[0])

    def custom():
        return edit_metrics(names, "record", {"first": TokenAccuracy(kind="locality")})

    again = SequentialProtocol(run.model, run.editor, run.evaluator, run.settings, run.groups, tmp_path, metrics=custom)
    outcomes = [again.step([group]) for group in again.groups][-1]
    expected, by_probe = custom(), edit_metrics(names)
    for metrics in (expected, by_probe):
        metrics.update(outcomes)
    over_records, over_probes = expected.compute(), by_probe.compute()
    assert any(value != over_records[name] for name, value in over_probes.items() if not math.isnan(value))
    assert "first" in again.rows[-1]["all"]
    for name, value in expected.compute().items():
        if not math.isnan(value):
            assert again.rows[-1]["all"][name] == pytest.approx(float(value), abs=1e-6)


def test_records_out_of_order_are_an_error(records, tmp_path):
    run = sequence_of(records, tmp_path)
    with pytest.raises(EditError, match="come in its order"):
        run.step([run.groups[1]])


def test_stopping_by_a_perplexity_that_is_not_measured_is_an_error():
    with pytest.raises(ConfigurationError, match="needs the text that perplexity is measured on"):
        SequentialSettings(stop_above=2.0)
    with pytest.raises(
        ConfigurationError, match=r"nothing is measured before the end; set evaluation.sequential.every"
    ):
        SequentialSettings(stop_above=2.0, text="text.txt")


def test_numbers_out_of_range_are_refused():
    for name, value in {"every": -1, "tokens": 1, "stop_above": 0.0}.items():
        with pytest.raises(ConfigurationError, match=f"evaluation.sequential.{name}: expected"):
            SequentialSettings(**{"text": "text.txt", "every": 1, name: value})


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_perplexity_is_that_of_the_full_logits(family):
    model = language_model(family)
    rows = torch.randint(3, 90, (5, 12), generator=torch.Generator().manual_seed(0))
    logits = model.model(rows).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), rows[:, 1:].flatten())
    assert perplexity(partial(losses_of_rows, model), rows, rows_per_pass=2) == pytest.approx(
        float(expected.exp()), rel=1e-4
    )


def test_training_measures_no_sequence(tmp_path, tiny_folder, capsys):
    config = str(write_config(tmp_path, tiny_folder))
    assert main(["fit", "--config", config, "--model.validation.sequential.every", "1"]) == 1
    assert "a sequence is measured once, not after each epoch" in capsys.readouterr().err


def test_on_the_command_line(tmp_path, tiny_folder, text, capsys):
    config = write_config(tmp_path, tiny_folder)
    content = yaml.safe_load(config.read_text())
    content["model"]["class_path"] = "lightning_edit.modules.EditingModule"
    content["model"]["init_args"] = {
        "language_model": {"name_or_path": str(tiny_folder)},
        "editor": {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [-1]}},
        "evaluation": {"generate": False, "sequential": {"every": 2, "text": text, "tokens": 512}},
    }
    config.write_text(yaml.safe_dump(content))
    assert main(["test", "--config", str(config)]) == 0
    (written,) = tmp_path.rglob(SCHEDULE_FILE)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["edits"] for row in rows] == [2, 4, 5]
    metrics = json.loads((written.parent / "metrics.json").read_text())
    assert metrics["counts"]["records"] == 5
    assert metrics["protocol"] == "edited one after another, each edit on top of all before"
    assert metrics["metrics"]["edit_success/token_accuracy"] == pytest.approx(
        rows[-1]["all"]["edit_success/token_accuracy"], abs=1e-5
    )
    assert main(["test", "--config", str(config), "--trainer.limit_test_batches", "3"]) == 0
    counts = [json.loads(path.read_text())["counts"]["records"] for path in tmp_path.rglob("metrics.json")]
    assert sorted(counts) == [3, 5]
    stopping = ["--model.editor.init_args.step_size", "500", "--model.evaluation.sequential.stop_above", "2"]
    with pytest.warns(UserWarning, match="the sequence ends here"):
        assert main(["test", "--config", str(config), *stopping]) == 0
    ended = [json.loads(path.read_text())["stopped_after"] for path in tmp_path.rglob("metrics.json")]
    assert sorted(ended, key=str) == [2, None, None]
    assert main(["fit", "--config", str(config)]) == 1
    assert "GradientStep in EditingModule has nothing to fit" in capsys.readouterr().err
    records = WorldFacts("validation", limit=5).read().records
    assert set(edit_metrics(group_names(records)).keys()) >= set(rows[-1]["all"])


def test_measures_of_a_model_that_broke_are_written_as_null(records, tmp_path):
    first_step(sequence_of(records[:1], tmp_path, step_size=1e38, every=1))
    lines = (tmp_path / SCHEDULE_FILE).read_text().splitlines()

    def refuse(name):
        raise AssertionError(name)

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert None in [value for row in rows for value in row["all"].values()]
