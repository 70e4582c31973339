"""KL divergence from the unedited model."""

from __future__ import annotations

import math

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome


class Divergence(OutcomeMetric):
    """Mean KL(unedited || edited) in nats over the answer's positions.

    The functional form is :func:`lightning_edit.functional.divergence.kl_divergence`; outcomes carry only the number,
    because distributions are too large to keep. If a model with other tokens answered, there is no divergence. Leaving
    the outcome out would favour the edit, so it counts as not finite.
    """

    higher_is_better = False

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        if outcome.divergence is None and outcome.route is not None and outcome.route.hit:
            return math.nan
        return outcome.divergence
