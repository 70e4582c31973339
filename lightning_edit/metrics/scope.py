"""Metrics of how edits with an explicit memory route prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome, ProbeKind

IN_SCOPE = (ProbeKind.EDIT_SUCCESS, ProbeKind.GENERALIZATION)
"""Kinds of probes in the scope of an edit; locality probes are out of scope, others are not counted."""
THRESHOLDS = 101


class ScopeHitRate(OutcomeMetric):
    """Share of prompts that were answered from the memory.

    This is the hit rate for probes in scope, and the false-hit rate for locality probes.
    """

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return None if outcome.route is None else float(outcome.route.hit)


class ChosenEditAccuracy(OutcomeMetric):
    """Share of prompts whose most likely remembered request belongs to the probe's own record."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return None if outcome.right_request is None else float(outcome.right_request)


def scope_labels(outcomes: Sequence[EditOutcome]) -> tuple[Tensor, Tensor]:
    """Returns (N) float32 in-scope probabilities and (N) int64 labels of the counted outcomes.

    Scores that are no probabilities, such as the distances of a codebook, are left out.
    """
    judged = [
        (outcome.route.score, int(outcome.probe.kind in IN_SCOPE))
        for outcome in outcomes
        if outcome.route is not None
        and outcome.route.is_probability
        and outcome.probe.kind in (*IN_SCOPE, ProbeKind.LOCALITY)
    ]
    probabilities, labels = zip(*judged, strict=True) if judged else ((), ())
    return torch.tensor(probabilities, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def scope_curve(outcomes: Sequence[EditOutcome]) -> list[dict[str, float]]:
    """Computes precision, recall and false-hit rate at thresholds from 0 to 1; empty without probabilities."""
    probabilities, labels = scope_labels(outcomes)
    if not len(labels):
        return []
    thresholds = torch.linspace(0, 1, THRESHOLDS)
    precision, recall, _ = binary_precision_recall_curve(probabilities, labels, thresholds=thresholds)
    # The ROC has decreasing thresholds.
    false_hits = binary_roc(probabilities, labels, thresholds=thresholds)[0].flip(0)
    columns = (thresholds, precision[:-1], recall[:-1], false_hits)
    names = ("threshold", "precision", "recall", "false_hit_rate")
    return [dict(zip(names, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]


class _ScopeArea(Metric):
    """Area under a curve of the scope classifier over all outcomes; NaN without probabilities of scope."""

    higher_is_better = True
    full_state_update = False
    count: Tensor

    def __init__(self, area: BinaryAUROC | BinaryAveragePrecision) -> None:
        super().__init__()
        self.area = area
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outcomes: Sequence[EditOutcome]) -> None:
        """Adds outcomes; those without a route are ignored."""
        probabilities, labels = scope_labels(outcomes)
        self.count += len(labels)
        if len(labels):
            self.area.update(probabilities.to(self.area.device), labels.to(self.area.device))

    def compute(self) -> Tensor:
        """Computes the area ()."""
        # The count is summed over processes here, so all of them take the same branch.
        if float(self.count) == 0:
            return torch.tensor(float("nan"))
        area: Tensor = self.area.compute()
        return area

    def reset(self) -> None:
        """Resets the state and the area."""
        super().reset()
        self.area.reset()


class ScopeAUROC(_ScopeArea):
    """Area under the ROC curve of the scope classifier."""

    def __init__(self) -> None:
        super().__init__(BinaryAUROC(thresholds=THRESHOLDS))


class ScopeAveragePrecision(_ScopeArea):
    """Area under the precision-recall curve of the scope classifier."""

    def __init__(self) -> None:
        super().__init__(BinaryAveragePrecision(thresholds=THRESHOLDS))
