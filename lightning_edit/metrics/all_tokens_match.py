"""Teacher-forced match of the whole target."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome


def all_tokens_match(predicted: Sequence[int], target: Sequence[int]) -> float:
    """Returns 1.0 if every target token is the most probable one given the earlier ones, else 0.0.

    Args:
        predicted: T token ids.
        target: T token ids.
    """
    return float(tuple(predicted) == tuple(target))


class AllTokensMatch(OutcomeMetric):
    """Mean of :func:`all_tokens_match`."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return all_tokens_match(self.answer(outcome).predicted_ids, outcome.target_ids) if outcome.target_ids else None
