"""Base class of metrics over edit outcomes: which outcomes count, and how they are averaged."""

from __future__ import annotations

import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.errors import ConfigurationError
from lightning_edit.records import Answer, EditOutcome, ProbeKind

Average = Literal["probe", "record"]
Side = Literal["before", "after"]


def slug(group: str) -> str:
    """Returns a group's name for logs: letters and digits of every script in lower case, joined by underscores."""
    folded = unicodedata.normalize("NFKC", group).casefold()
    return re.sub(r"\W+", "_", folded).strip("_")


class OutcomeMetric(Metric, ABC):
    """Averages a value over the outcomes of one kind and group.

    Args:
        kind: Count only probes of this kind, such as "locality"; None counts all.
        group: Count only probes of this group; None counts all.
        average: "probe" weights all probes equally; "record" averages within each record first. A record's outcomes
            must be in one update.
        side: Evaluate the edited model ("after") or the unedited one ("before").
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    not_finite: Tensor

    def __init__(
        self,
        kind: ProbeKind | str | None = None,
        group: str | None = None,
        average: Average = "probe",
        side: Side = "after",
    ) -> None:
        super().__init__()
        if kind is not None and kind not in list(ProbeKind):
            raise ConfigurationError(
                f"{type(self).__name__}.kind: expected one of {[str(one) for one in ProbeKind]}, found {kind!r}"
            )
        self.kind = None if kind is None else ProbeKind(kind)
        self.group, self.average, self.side = group, average, side
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("not_finite", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def value(self, outcome: EditOutcome) -> float | None:
        """Returns the value for one outcome, or None if it does not apply."""

    def answer(self, outcome: EditOutcome) -> Answer:
        """Returns the evaluated model's answer."""
        return outcome.before if self.side == "before" else outcome.after

    def counts(self, outcome: EditOutcome) -> bool:
        """Whether an outcome has the metric's kind and group."""
        return self.kind in (None, outcome.probe.kind) and self.group in (None, outcome.probe.group)

    def qualified(self, name: str) -> str:
        """Returns a name with the metric's kind, group and side, such as "locality/neighbour/first_token_before"."""
        parts = [part for part in (self.kind and str(self.kind), slug(self.group or "")) if part]
        return "/".join([*parts, f"{name}_before" if self.side == "before" else name])

    def update(self, outcomes: Sequence[EditOutcome]) -> None:
        """Adds outcomes; those of other kinds and groups are ignored."""
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
        """Computes the mean () float64; NaN if nothing was counted, infinite if a value was not finite.

        Averaging only finite values would favour an edit that broke the model.
        """
        return torch.where(self.not_finite > 0, torch.full_like(self.total, math.inf), self.total / self.count)
