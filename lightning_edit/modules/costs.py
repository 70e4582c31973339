"""What edits and their evaluation cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from lightning_edit.modules.evaluation import Evaluator

Stage = Literal["unedited", "editing", "edited"]


@dataclass
class Costs:
    """Seconds and sizes of a run.

    Args:
        edits: Edits made.
        probes: Probes asked of edited models.
        unedited_seconds: Asking the unedited model.
        editing_seconds: Making edits.
        reused_seconds: What searches took whose results were taken from an earlier one; an edit costs them as well.
        edited_seconds: Asking edited models, without their judge.
        judging_seconds: Asking a judge about what edited models generated.
        edit_bytes: Largest size among the edits that were sampled for it, one of each batch.
    """

    edits: int = 0
    probes: int = 0
    unedited_seconds: float = 0.0
    editing_seconds: float = 0.0
    reused_seconds: float = 0.0
    edited_seconds: float = 0.0
    judging_seconds: float = 0.0
    edit_bytes: int = 0

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Adds the time that a block takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - started)

    @contextmanager
    def timed_asking(self, evaluator: Evaluator) -> Iterator[None]:
        """Adds the time of a block to that of asking edited models, but for the judge's part of it."""
        before = evaluator.judging_seconds
        with self.timed("edited"):
            yield
        judging = evaluator.judging_seconds - before
        self.edited_seconds -= judging
        self.judging_seconds += judging

    def summary(self, device: torch.device) -> dict[str, float | None]:
        """Seconds for each edit and probe, the largest edit, and the peak memory of the process (and of its GPU)."""
        summary: dict[str, float | None] = {
            "seconds_per_edit": (self.editing_seconds + self.reused_seconds) / self.edits if self.edits else None,
            "seconds_per_probe": self.edited_seconds / self.probes if self.probes else None,
            "seconds": self.unedited_seconds + self.editing_seconds + self.edited_seconds + self.judging_seconds,
            "seconds_of_unedited_model": self.unedited_seconds,
            "seconds_of_judge": self.judging_seconds,
            "seconds_of_reused_searches": self.reused_seconds,
            "edit_bytes": self.edit_bytes,
            "peak_memory_bytes": _peak_memory(),
        }
        if device.type == "cuda":
            summary["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        return summary


def _peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
