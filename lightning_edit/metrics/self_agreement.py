"""Locality as agreement with the unedited model."""

from __future__ import annotations

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.metrics.token_accuracy import token_accuracy
from lightning_edit.records import EditOutcome


def generation_agreement(before: str, after: str) -> float:
    """Returns 1.0 if both models generate the same text, else 0.0."""
    return float(before == after)


class SelfAgreement(OutcomeMetric):
    """Mean share of answer positions where the edited and the unedited model predict the same token.

    This is KnowEdit's locality (Zhang et al. 2024, section 4). The gold answer is given to both models; whether
    they would predict it is measured by :class:`TokenAccuracy`.
    """

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        before, after = outcome.before.predicted_ids, outcome.after.predicted_ids
        return token_accuracy(after, before) if before else None


class GenerationAgreement(OutcomeMetric):
    """Mean of :func:`generation_agreement`: the free-generation counterpart of :class:`SelfAgreement`."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        before, after = outcome.before.generation, outcome.after.generation
        return None if before is None or after is None else generation_agreement(before, after)
