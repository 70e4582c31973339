"""Stops all processes of a distributed run together on SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_edit.callbacks.last_checkpoint import LastCheckpoint


class Interrupts(Callback):
    """Saves the state and stops all processes of fit after the same batch when one receives SIGTERM.

    Lightning's handler communicates inside the signal handler while the other processes wait for a gradient, which
    deadlocks. It still handles runs of one process.
    """

    def __init__(self) -> None:
        self._received = False
        self._earlier: Callable[[int, FrameType | None], Any] | int | None = None
        self._installed = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the signal handler."""
        self._received = False
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGTERM, self._note)
            self._installed = True

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._received = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops all processes if one received SIGTERM.

        Raises:
            SIGTERMException: In all processes.
        """
        if not self._installed:
            return
        received = torch.tensor(int(self._received), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        if received:
            callbacks: list[Callback] = getattr(trainer, "callbacks", [])
            for callback in callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.save(trainer)
            raise SIGTERMException

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the earlier signal handler."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """See :meth:`teardown`."""
        self._restore()

    def _restore(self) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._earlier)
            self._installed = False
