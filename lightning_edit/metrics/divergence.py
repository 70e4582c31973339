"""KL divergence from the unedited model."""

from __future__ import annotations

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome


class Divergence(OutcomeMetric):
    """Mean KL(unedited || edited) in nats over the answer's positions.

    The functional form is :func:`lightning_edit.functional.divergence.kl_divergence`; whole distributions are too
    large to keep, so outcomes carry the number.
    """

    higher_is_better = False

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return outcome.divergence
