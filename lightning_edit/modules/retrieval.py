"""Fits editors that index training records instead of training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torchmetrics import Metric

from lightning_edit.editors.base import Editor
from lightning_edit.errors import ConfigurationError
from lightning_edit.metrics.base import Average
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.modules.base import EditingModule
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.records import EditRecord

_LOG = logging.getLogger(__name__)


@runtime_checkable
class IndexesRecords(Protocol):
    """An editor that indexes training records."""

    def index(self, records: Sequence[EditRecord]) -> int:
        """Indexes records and returns the number of entries."""


class RetrievalEditing(EditingModule):
    """Indexes the training records in fit (IKE); validates, tests and predicts edits.

    There is nothing to train: the index is built once and stored in the checkpoint.

    Args:
        editor: An editor with ``index(records)``.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes.

    Raises:
        ConfigurationError: If the editor indexes nothing.
    """

    def __init__(
        self,
        editor: Editor,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate_records=8),
        average: Average = "probe",
        metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average, metrics)
        if not isinstance(editor, IndexesRecords):
            raise ConfigurationError(
                f"model.editor: {type(editor).__name__} indexes no records; use it with "
                "lightning_edit.modules.EditingModule"
            )
        self.automatic_optimization = False

    def setup(self, stage: str) -> None:
        """See :meth:`EditingModule.setup`."""
        super().setup(stage)
        if stage == "fit" and self.trainer.world_size > 1 and not list(self.parameters()):
            # Data parallelism refuses modules without parameters.
            self.placeholder = nn.Parameter(torch.zeros(()))

    def on_fit_start(self) -> None:
        """Indexes the training records; every process builds the same index."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        count = cast(IndexesRecords, self.editor).index(datamodule.records("fit"))
        self.editor.to(self.device)
        _LOG.info("%d training requests indexed", count)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int:
        """Skips the training batches: the index is complete."""
        return -1

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Never called; only marks the module as one that can be fitted."""

    def configure_optimizers(self) -> None:
        """Returns None, as there is nothing to optimise."""
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`EditingModule.on_save_checkpoint`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"].pop("placeholder", None)
