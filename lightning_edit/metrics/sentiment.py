"""Sentiment of an edited model: likelihood of given opinions (Mitchell et al. 2022), and generated opinions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome

POSITIVE, NEGATIVE = "positive", "negative"
"""Groups of sentiment probes: the sentiment that the edit asks for."""


def sentiment_score(wanted: Sequence[float], opposite: Sequence[float], wanted_before: Sequence[float]) -> float:
    """Scores how much an edited model prefers the wanted sentiment, without forgetting the topic.

    z_sentiment · z_topic = σ(w - o) · min(1, exp(w - w₀)), with w and o the mean log-probability of the tokens of all
    opinions of the wanted and of the opposite sentiment, and w₀ that of the wanted ones under the unedited model
    (Mitchell et al. 2022, arXiv 2206.06520, section 5; KnowEdit's measure of ConvSent).

    Args:
        wanted: Natural logarithms of the probabilities of the tokens of the wanted opinions, at least one.
        opposite: The same for the opposite opinions.
        wanted_before: The same as ``wanted``, under the unedited model.

    Returns:
        A number in [0, 1]; NaN if a logarithm is not finite.

    Example:
        >>> round(sentiment_score([-1.0, -1.0], [-3.0], [-1.0, -2.0]), 4)
        0.8808
    """
    w, o, before = (sum(values) / len(values) for values in (wanted, opposite, wanted_before))
    if not all(map(math.isfinite, (w, o, before))):
        return math.nan
    return min(1.0, math.exp(min(w - before, 0.0))) * (1 + math.tanh((w - o) / 2)) / 2


class SentimentScore(OutcomeMetric):
    """Mean of :func:`sentiment_score` over sentiment probes."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        answer = self.answer(outcome)
        if not answer.wanted_log_probs:
            return None
        return sentiment_score(answer.wanted_log_probs, answer.opposite_log_probs, outcome.before.wanted_log_probs)


class GeneratedSentiment(OutcomeMetric):
    """Mean sentiment of free generations after sentiment probes: 1 as wanted, -1 the opposite, 0 neutral.

    The sentiment of an English text is the compound score of VADER (Hutto and Gilbert 2014), a lexicon with rules.
    """

    higher_is_better = True

    @cached_property
    def _analyzer(self) -> SentimentIntensityAnalyzer:
        return SentimentIntensityAnalyzer()

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        text = self.answer(outcome).generation
        if text is None or outcome.probe.group not in (POSITIVE, NEGATIVE):
            return None
        compound = float(self._analyzer.polarity_scores(text)["compound"])
        return compound if outcome.probe.group == POSITIVE else -compound
