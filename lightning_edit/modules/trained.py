"""What modules share that train an editor's networks by gradient descent."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import grad_norm
from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.metrics.base import Average
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.base import EditingModule
from lightning_edit.modules.evaluation import EvaluationSettings

Schedule = Literal["constant", "cosine"]


class TrainedEditing(EditingModule):
    """Trains an editor with automatic optimisation: Adam, a warm-up, and a schedule of the learning rates.

    Args:
        editor: The editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation while fitting.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        warmup_steps: The learning rates rise linearly over this many steps.
        schedule: "constant", or "cosine" decay to zero over the run.
        trunk_gigabytes: Memory for the hidden states below the lowest block that training reaches; see :class:`Trunk`.
    """

    def __init__(
        self,
        editor: Editor,
        language_model: LanguageModelSettings,
        evaluation: EvaluationSettings,
        validation: EvaluationSettings,
        average: Average,
        warmup_steps: int,
        schedule: Schedule,
        trunk_gigabytes: float,
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average)
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.trunk_gigabytes = trunk_gigabytes
        self._kept: Trunk | None = None

    def lowest_layer(self) -> int:
        """The lowest block whose output training changes."""
        raise NotImplementedError

    def trunk(self) -> Trunk:
        """The hidden states below the lowest block that training reaches."""
        if self._kept is None:
            limit = int(self.trunk_gigabytes * 2**30)
            self._kept = Trunk(self.language_model, max(self.lowest_layer(), 0), limit)
        return self._kept

    def fill_trunk(self, datamodule: Any) -> None:
        """Computes the hidden states of every training text."""
        self.trunk().fill(*datamodule.training_texts())

    def on_fit_start(self) -> None:
        """Computes what training cannot change, once for every training text."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        rehearsal = getattr(self.trainer, "fast_dev_run", False)
        if self.trunk_gigabytes > 0 and not rehearsal and datamodule is not None:
            self.fill_trunk(datamodule)

    def log_step(self, values: dict[str, Tensor | float], batch_size: int, bar: tuple[str, ...]) -> None:
        """Logs values of a training step as "train/…", some of them in the progress bar."""
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name in bar, batch_size=batch_size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the norm of the gradient before it is clipped."""
        norms = grad_norm(self.editor, norm_type=2)
        if norms:
            self.log("train/grad_norm", norms["grad_2.0_norm_total"])

    def scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        """An optimizer with the warm-up and the schedule."""
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Factor of the learning rates at a step."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        total = max(int(self.trainer.estimated_stepping_batches), self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(total - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
