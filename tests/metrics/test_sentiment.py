"""The sentiment of an edited model's opinions."""

import math

import pytest
import torch

from lightning_edit.editors import ICE, GradientStep
from lightning_edit.errors import RequestError
from lightning_edit.metrics import GeneratedSentiment, SentimentScore, sentiment_score
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import Answer, EditOutcome, EditRecord, EditRequest, Probe, ProbeKind
from tests.tiny_models import language_model

WANTED, OPPOSITE = ("It is awful.", "I do not like it at all."), ("It is lovely.",)


def probe(group="negative"):
    return Probe("What do you think of Rome?", ((WANTED[0],), (WANTED[1],)), ProbeKind.SENTIMENT, group,
                 opposites=OPPOSITE)  # fmt: skip


def test_the_score_is_the_product_of_preference_and_topic():
    """Values of ``es`` in EasyEdit's evaluation (zjunlp/EasyEdit 14cea82) for these log-probabilities."""
    wanted, opposite, before = torch.tensor([-1.5, -2.5, -0.5]), torch.tensor([-3.0, -1.0]), torch.tensor([-1.0] * 3)
    preference = torch.sigmoid(wanted.mean() - opposite.mean())
    topic = (wanted.mean() - before.mean()).exp().clamp(max=1)
    expected = float(preference * topic)
    assert expected == pytest.approx(0.377541, abs=1e-6)
    assert sentiment_score(wanted.tolist(), opposite.tolist(), before.tolist()) == pytest.approx(expected, rel=1e-6)


def test_a_model_that_says_the_opinions_more_often_than_before_has_the_whole_topic():
    assert sentiment_score([-1.0], [-1.0], [-9.0]) == 0.5
    assert sentiment_score([-1.0], [-800.0], [-1.0]) == 1.0
    assert sentiment_score([-900.0], [-1.0], [-1.0]) == 0.0
    assert math.isnan(sentiment_score([math.nan], [-1.0], [-1.0]))
    assert math.isnan(sentiment_score([-math.inf], [-math.inf], [-1.0]))


def test_before_and_after_are_told_apart():
    before, after = (Answer(wanted_log_probs=(wanted,), opposite_log_probs=(-2.0,)) for wanted in (-4.0, -1.0))
    outcome = EditOutcome("r", probe(), (), before, after)
    assert SentimentScore().value(outcome) == pytest.approx(1 / (1 + math.exp(-1)))
    assert SentimentScore(side="before").value(outcome) == pytest.approx(1 / (1 + math.exp(2)))


@pytest.mark.parametrize(("text", "sign"), [("I hate it, it is terrible.", -1), ("It is a wonderful place!", 1)])
@pytest.mark.parametrize("group", ["negative", "positive"])
def test_generated_text_counts_by_the_sentiment_that_was_asked_for(text, sign, group):
    outcome = EditOutcome("r", probe(group), (), Answer(), Answer(generation=text))
    value = GeneratedSentiment().value(outcome)
    assert math.copysign(1, value) == (sign if group == "positive" else -sign)
    assert abs(value) > 0.4
    assert GeneratedSentiment(side="before").value(outcome) is None


def records():
    return [
        EditRecord(f"r{number}", (EditRequest(f"What do you think of {name}?", WANTED[0], subject=name),), (
            Probe(f"What do you think of {name}?", ((WANTED[0],), (WANTED[1],)), ProbeKind.SENTIMENT, "negative",
                  opposites=OPPOSITE),
        ))
        for number, name in enumerate(["Rome", "Quito", "Oslo"])
    ]  # fmt: skip


@pytest.mark.parametrize("editor", [GradientStep(sites=[1, 2], step_size=0.5), ICE()])
def test_every_opinion_is_scored_under_the_edit_of_its_record(editor):
    """Side by side, as one by one through ``score``."""
    model = language_model("llama")
    editor.setup(model)
    edits = editor.edit_each(model, [record.requests[0] for record in records()])
    evaluator = Evaluator(model, EvaluationSettings())
    outcomes = [one for one in evaluator.evaluate(records(), edits) if one.probe.kind is ProbeKind.SENTIMENT]
    assert len(outcomes) == 3
    for number, outcome in enumerate(outcomes):
        prompts = [outcome.probe.prompt] * 3
        with edits[number].applied(model) as scorer:
            scores = scorer.score(prompts, [*WANTED, *OPPOSITE])
        wanted = [value for score in scores[:2] for value in score.log_probs]
        assert outcome.after.wanted_log_probs == pytest.approx(wanted, abs=1e-4)
        assert outcome.after.opposite_log_probs == pytest.approx(scores[2].log_probs, abs=1e-4)
        assert outcome.before.wanted_log_probs != pytest.approx(wanted, abs=1e-4)
        assert outcome.after.generation is not None


def test_a_sentiment_probe_needs_both_sides():
    with pytest.raises(RequestError, match="has no texts of the opposite sentiment"):
        Probe("What do you think of Rome?", (("It is bad.",),), ProbeKind.SENTIMENT)
