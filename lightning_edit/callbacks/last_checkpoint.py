"""Keeps a recent checkpoint from which a run can resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_edit import ranges

LAST = "last.ckpt"


class LastCheckpoint(Callback):
    """Saves "last.ckpt" at regular intervals, at the end of fit, and when a run is interrupted or fails.

    Args:
        every_seconds: Seconds between two checkpoints.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        ranges.above(0, "trainer.callbacks.LastCheckpoint", every_seconds=every_seconds)
        self.every_seconds = every_seconds
        self._saved_at = 0.0
        self._saved_step = -1
        self._first_step = 0
        self._folder: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses the folder, which all processes must do together, and starts the clock."""
        self._saved_at, self._saved_step, self._first_step = time.monotonic(), -1, trainer.global_step
        directory = next(
            (
                callback.dirpath
                for callback in trainer.checkpoint_callbacks
                if isinstance(callback, ModelCheckpoint) and callback.dirpath
            ),
            None,
        )
        self._folder = Path(directory or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")

    @property
    def path(self) -> Path | None:
        """Path of the checkpoint; None before fit."""
        return None if self._folder is None else self._folder / LAST

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if the interval has passed; the first process decides for all."""
        due = trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.every_seconds)
        if due:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state."""
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the state in a run of one process; with several, others may wait elsewhere."""
        if trainer.training and trainer.world_size == 1 and trainer.global_step > self._first_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves the state, unless it is saved already; in a run of several processes, all of them must call this."""
        if getattr(trainer, "fast_dev_run", False) or self.path is None or trainer.global_step == self._saved_step:
            return
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
