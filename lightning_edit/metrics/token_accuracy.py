"""Teacher-forced token accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome


def token_accuracy(predicted: Sequence[int], target: Sequence[int]) -> float:
    """Computes the share of target tokens that are the most probable ones given the earlier ones.

    It gives credit for partial overlap, and the gold tokens leak the answer's content and length; read it with a
    free-generation measure.

    Args:
        predicted: T token ids.
        target: T token ids, at least one.
    """
    return sum(a == b for a, b in zip(predicted, target, strict=True)) / len(target)


class TokenAccuracy(OutcomeMetric):
    """Mean of :func:`token_accuracy`."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return token_accuracy(self.answer(outcome).predicted_ids, outcome.target_ids) if outcome.target_ids else None
