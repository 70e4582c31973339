"""Costs of edits and their evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from lightning_edit.modules.evaluation import Evaluator

Stage = Literal["unedited", "editing", "edited", "perplexity"]


@dataclass
class Costs:
    """Seconds and sizes of a run.

    Args:
        edits: Number of edits made.
        probes: Number of probes asked of edited models.
        unedited_seconds: Asking the unedited model.
        editing_seconds: Making edits.
        reused_seconds: Original time of reused value searches, which also counts as cost of an edit.
        edited_seconds: Asking edited models, without judging.
        judging_seconds: Judging the answers of edited models.
        perplexity_seconds: Measuring the perplexity of plain text.
        edit_bytes: Largest size of an edit, among one sample per batch.
    """

    edits: int = 0
    probes: int = 0
    unedited_seconds: float = 0.0
    editing_seconds: float = 0.0
    reused_seconds: float = 0.0
    edited_seconds: float = 0.0
    judging_seconds: float = 0.0
    perplexity_seconds: float = 0.0
    edit_bytes: int = 0

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    @contextmanager
    def timed_asking(self, evaluator: Evaluator) -> Iterator[None]:
        """Adds the time of a block to that of asking edited models, without the judge's share."""
        before = evaluator.judging_seconds
        with self.timed("edited"):
            yield
        judging = evaluator.judging_seconds - before
        self.edited_seconds -= judging
        self.judging_seconds += judging

    def summary(self, device: torch.device) -> dict[str, float | None]:
        """Summarises seconds per edit and probe, the largest edit, and the peak memory of process and GPU."""
        summary: dict[str, float | None] = {
            "seconds_per_edit": (self.editing_seconds + self.reused_seconds) / self.edits if self.edits else None,
            "seconds_per_probe": self.edited_seconds / self.probes if self.probes else None,
            "seconds": self.unedited_seconds
            + self.editing_seconds
            + self.edited_seconds
            + self.judging_seconds
            + self.perplexity_seconds,
            "seconds_of_unedited_model": self.unedited_seconds,
            "seconds_of_judge": self.judging_seconds,
            "seconds_of_judge_per_probe": self.judging_seconds / self.probes if self.probes else None,
            "seconds_of_reused_searches": self.reused_seconds,
            "edit_bytes": self.edit_bytes,
            "peak_memory_bytes": _peak_memory(),
        }
        if device.type == "cuda":
            summary["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        return summary


def _peak_memory() -> int | None:
    """Returns the peak resident memory of this process in bytes; None if the system does not report it."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
