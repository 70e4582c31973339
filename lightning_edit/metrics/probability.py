"""Probability of the answer against its rival: ROME's efficacy, paraphrase and neighborhood scores and magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome


def mean_probability(log_probs: Sequence[float]) -> float:
    """Computes exp of the mean log-probability of an answer's tokens, comparable across answer lengths.

    Args:
        log_probs: T natural logarithms, at least one.
    """
    return math.exp(sum(log_probs) / len(log_probs))


def probability_score(log_probs: Sequence[float], rival_log_probs: Sequence[float]) -> float:
    """Returns 1.0 if the answer beats its rival, else 0.0 (Meng et al. 2022, arXiv 2202.05262, ES, PS, NS).

    Args:
        log_probs: Natural logarithms of the probabilities of the answer's tokens.
        rival_log_probs: The same for the rival's tokens.

    Returns:
        NaN if one of the probabilities is NaN.
    """
    answer, rival = mean_probability(log_probs), mean_probability(rival_log_probs)
    # A comparison with NaN is false and would count as a failure.
    return float(answer > rival) if math.isfinite(answer) and math.isfinite(rival) else math.nan


def probability_magnitude(log_probs: Sequence[float], rival_log_probs: Sequence[float]) -> float:
    """Computes answer minus rival probability (Meng et al. 2022, EM, PM, NM); arguments as for the score."""
    return mean_probability(log_probs) - mean_probability(rival_log_probs)


class ProbabilityScore(OutcomeMetric):
    """Mean of :func:`probability_score` over the probes that have a rival."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        answer = self.answer(outcome)
        return probability_score(answer.log_probs, answer.rival_log_probs) if answer.rival_log_probs else None


class ProbabilityMagnitude(OutcomeMetric):
    """Mean of :func:`probability_magnitude` over the probes that have a rival."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        answer = self.answer(outcome)
        return probability_magnitude(answer.log_probs, answer.rival_log_probs) if answer.rival_log_probs else None
