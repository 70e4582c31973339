"""What edits and their evaluation cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

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
        edited_seconds: Asking edited models.
        edit_bytes: Largest size among the edits that were sampled for it, one of each batch.
    """

    edits: int = 0
    probes: int = 0
    unedited_seconds: float = 0.0
    editing_seconds: float = 0.0
    reused_seconds: float = 0.0
    edited_seconds: float = 0.0
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

    def summary(self, device: torch.device) -> dict[str, float | None]:
        """Seconds for each edit and probe, the largest edit, and the peak memory of the process (and of its GPU)."""
        summary: dict[str, float | None] = {
            "seconds_per_edit": (self.editing_seconds + self.reused_seconds) / self.edits if self.edits else None,
            "seconds_per_probe": self.edited_seconds / self.probes if self.probes else None,
            "seconds_of_unedited_model": self.unedited_seconds,
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
