"""What all metrics over edit outcomes share: which outcomes count, and how they are averaged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.records import Answer, EditOutcome, ProbeKind

Average = Literal["probe", "record"]
Side = Literal["before", "after"]


class OutcomeMetric(Metric, ABC):
    """The mean of a value over the outcomes of one kind and group.

    Args:
        kind: Count only probes of this kind; None counts all.
        group: Count only probes of this group; None counts all.
        average: "probe" weighs every probe alike; "record" averages inside each record first. A record's outcomes
            must come in one update.
        side: Judge the edited model ("after") or the unedited one ("before").
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    not_finite: Tensor

    def __init__(
        self,
        kind: ProbeKind | None = None,
        group: str | None = None,
        average: Average = "probe",
        side: Side = "after",
    ) -> None:
        super().__init__()
        self.kind, self.group, self.average, self.side = kind, group, average, side
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("not_finite", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def value(self, outcome: EditOutcome) -> float | None:
        """The value of one outcome; None where it does not apply to it."""

    def answer(self, outcome: EditOutcome) -> Answer:
        """What the judged model says."""
        return outcome.before if self.side == "before" else outcome.after

    def counts(self, outcome: EditOutcome) -> bool:
        """Whether an outcome is of the metric's kind and group."""
        return self.kind in (None, outcome.probe.kind) and self.group in (None, outcome.probe.group)

    def update(self, outcomes: Sequence[EditOutcome]) -> None:
        """Adds outcomes; those of other kinds and groups are passed over."""
        by_record: dict[str, list[float]] = {}
        for outcome in filter(self.counts, outcomes):
            value = self.value(outcome)
            if value is None:
                continue
            if not math.isfinite(value):
                self.not_finite += 1
                continue
            by_record.setdefault(outcome.record_id, []).append(value)
        for values in by_record.values():
            weight = 1 / len(values) if self.average == "record" else 1.0
            self.total += weight * sum(values)
            self.count += weight * len(values)

    def compute(self) -> Tensor:
        """() float64 the mean; NaN where nothing was counted, infinite where a value was not finite.

        The mean of the other values would flatter an edit that broke the model.
        """
        return torch.where(self.not_finite > 0, torch.full_like(self.total, math.inf), self.total / self.count)
