"""Base module for editors whose networks are trained by gradient descent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import grad_norm
from torch import Tensor
from torchmetrics import Metric

from lightning_edit import ranges
from lightning_edit.editors.base import Editor
from lightning_edit.editors.checkpoint import load_weights
from lightning_edit.files import cache_folder
from lightning_edit.metrics.base import Average
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.base import EditingModule
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.optimization import Optimization

_GRADIENTS = "lightning_edit_gradients"
"""Checkpoint key for the gradients of an incomplete accumulation step."""


@dataclass(frozen=True)
class TrunkSettings:
    """Cache of the hidden states that training does not change.

    They are computed once for every training text before the first step. That pays off from the second epoch or run
    on, or if only the uppermost layers are edited.

    Args:
        gigabytes: Maximum size; states of texts beyond it are computed each time. 0 disables the cache.
        on_disk: Store them in memory-mapped files instead of in memory; later runs with the same base model, tokenizer,
            layer and texts reuse them.
        dtype: Precision of the stored states: "auto" is the base model's. "bfloat16" halves the size, and rounds.
        folder: Folder for the files; the package's cache folder by default.
    """

    gigabytes: float = 0.0
    on_disk: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    folder: str | None = None

    def __post_init__(self) -> None:
        ranges.at_least(0, "trunk", gigabytes=self.gigabytes)


class TrainedEditing(EditingModule, ABC):
    """Trains an editor with automatic optimisation: Adam, a warm-up, and a schedule of the learning rates.

    Args:
        editor: The editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation while fitting.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes.
        optimization: How it is trained.
        trunk: Caching of the hidden states below the lowest block that training changes.
    """

    def __init__(
        self,
        editor: Editor,
        language_model: LanguageModelSettings,
        evaluation: EvaluationSettings,
        validation: EvaluationSettings,
        average: Average,
        metrics: Sequence[Metric],
        optimization: Optimization,
        trunk: TrunkSettings,
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average, metrics)
        self.optimization, self.trunk_settings = optimization, trunk
        self._kept: Trunk | None = None
        self._gradients: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """See :meth:`EditingModule.setup`; in fit, loads the initial weights, if configured."""
        super().setup(stage)
        if stage == "fit" and self.optimization.start is not None:
            load_weights(self.optimization.start, self.editor, self.language_model)

    @abstractmethod
    def lowest_layer(self) -> int:
        """Returns the lowest block whose output training changes."""

    def trunk(self) -> Trunk:
        """Returns the cached hidden states below the lowest block that training changes."""
        if self._kept is None:
            settings = self.trunk_settings
            dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
            layer = max(self.lowest_layer(), 0)
            self._kept = Trunk(self.language_model, layer, int(settings.gigabytes * 2**30), dtype)
        return self._kept

    def trunk_folder(self) -> Path | None:
        """Returns the folder for hidden states on disk; None for memory."""
        settings = self.trunk_settings
        if not settings.on_disk:
            return None
        return Path(settings.folder).expanduser() if settings.folder else cache_folder() / "trunk"

    def fill_trunk(self, datamodule: Any) -> None:
        """Computes the hidden states of every training text."""
        texts, compared = datamodule.training_texts()
        self.trunk().fill(texts, compared, self.trunk_folder())

    def fill_caches(self, datamodule: Any) -> None:
        """Computes everything that training does not change, once for every training text."""
        if self.trunk_settings.gigabytes > 0:
            self.fill_trunk(datamodule)

    def on_fit_start(self) -> None:
        """Fills the caches of the unedited model's states."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and not getattr(self.trainer, "fast_dev_run", False):
            self.fill_caches(datamodule)

    def on_train_start(self) -> None:
        """Restores the gradients of a run that was stopped within an accumulation step."""
        for name, parameter in self.editor.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter)
        self._gradients = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`EditingModule.on_save_checkpoint`; includes the gradients of an incomplete step."""
        super().on_save_checkpoint(checkpoint)
        if self.trainer.accumulate_grad_batches > 1:
            gradients = {name: parameter.grad for name, parameter in self.editor.named_parameters()}
            checkpoint[_GRADIENTS] = {name: gradient for name, gradient in gradients.items() if gradient is not None}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`EditingModule.on_load_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        self._gradients = checkpoint.get(_GRADIENTS, {})

    def log_step(self, values: dict[str, Tensor | float], batch_size: int, bar: tuple[str, ...]) -> None:
        """Logs values of a training step as "train/…", and those in ``bar`` in the progress bar."""
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name in bar, batch_size=batch_size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the norm of the gradient before it is clipped."""
        norms = grad_norm(self.editor, norm_type=2)
        if norms:
            self.log("train/grad_norm", norms["grad_2.0_norm_total"])

    def scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        """Adds the warm-up and the schedule to an optimizer."""
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Computes the factor of the learning rates at a step."""
        warmup = self.optimization.warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.optimization.schedule == "constant":
            return 1.0
        total = max(int(self.trainer.estimated_stepping_batches), warmup + 1)
        progress = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
