"""Logs progress in plain lines when no terminal shows a progress bar."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_edit import ranges

_LOG = logging.getLogger("lightning_edit")


class ProgressLines(Callback):
    """Logs the step, the time left and the loss at regular intervals, when the output goes to a file.

    Args:
        every_seconds: Seconds between two lines.
    """

    def __init__(self, every_seconds: float = 15.0) -> None:
        ranges.above(0, "progress", every_seconds=every_seconds)
        self.every_seconds = every_seconds
        self._started = self._shown = 0.0
        self._first = 0

    def _begin(self, trainer: Trainer, first: int) -> None:
        self._started = self._shown = time.monotonic()
        self._first = first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._begin(trainer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the progress of training, or of a pass over a corpus, which has no optimizer steps."""
        if not trainer.optimizers:
            self._say(trainer, "batch", batch_idx + 1, trainer.num_training_batches)
            return
        total = trainer.estimated_stepping_batches
        loss = trainer.progress_bar_metrics.get("train/loss")
        note = f", loss {float(loss):.3f}" if isinstance(loss, int | float) else ""
        self._say(trainer, "step", trainer.global_step, total, note)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restarts the clock, except for a validation during training."""
        if trainer.state.fn != "fit":
            self._begin(trainer, 0)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._begin(trainer, 0)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Logs the progress of testing."""
        self._say(trainer, "batch", batch_idx + 1, sum(trainer.num_test_batches))

    def _say(self, trainer: Trainer, what: str, done: int, total: float, note: str = "") -> None:
        now = time.monotonic()
        if sys.stderr.isatty() or not trainer.is_global_zero or now - self._shown < self.every_seconds:
            return
        self._shown = now
        seconds = (now - self._started) / max(done - self._first, 1) * (total - done)
        left = f", {seconds / 60:.1f} min left" if 0 < seconds < float("inf") else ""
        _LOG.info("%s %d of %s%s%s", what, done, f"{total:.0f}" if total < float("inf") else "?", note, left)
