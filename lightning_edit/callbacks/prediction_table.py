"""Shows validation prompts before and after their edits as a W&B table."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_edit.modules.base import EditingModule
from lightning_edit.records import EditOutcome

_COLUMNS: list[str | int] = [
    "step",
    "record",
    "probe",
    "prompt",
    "target",
    "before",
    "after",
    "generated",
    "token accuracy",
]


class PredictionTable(Callback):
    """Logs a table of prompts with the answers before and after their edits, once per validation.

    Answers are free generations. Records without them (``validation.generate_records``) show teacher-forced
    predictions; the column "generated" says which of the two is shown.

    Args:
        records: Number of records to show.
    """

    def __init__(self, records: int = 8) -> None:
        self.records = records
        self._shown: list[EditOutcome] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts with an empty table."""
        self._shown = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps the first records' outcomes."""
        known = {outcome.record_id for outcome in self._shown}
        for outcome in outputs["outcomes"]:
            if outcome.record_id in known or len(known) < self.records:
                known.add(outcome.record_id)
                self._shown.append(outcome)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends the table to every W&B logger."""
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(pl_module, EditingModule):
            return
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not loggers:
            return
        rows = [_row(outcome, trainer.global_step, pl_module) for outcome in self._shown]
        for logger in loggers:
            # A new table each time: a growing one would be uploaded in full with every row.
            import wandb  # only here, because the import takes half a second

            table = wandb.Table(columns=_COLUMNS, data=rows)
            logger.experiment.log({"val/predictions": table, "trainer/global_step": trainer.global_step})


def _row(outcome: EditOutcome, step: int, module: EditingModule) -> list[Any]:
    decode = module.encoder.decode
    before, after = outcome.before, outcome.after
    pairs = list(zip(after.predicted_ids, outcome.target_ids, strict=True))
    return [
        step,
        outcome.record_id,
        f"{outcome.probe.kind}/{outcome.probe.group}".rstrip("/"),
        outcome.probe.prompt,
        outcome.probe.answer,
        before.generation if before.generation is not None else decode(before.predicted_ids),
        after.generation if after.generation is not None else decode(after.predicted_ids),
        after.generation is not None,
        sum(a == b for a, b in pairs) / len(pairs) if pairs else None,
    ]
