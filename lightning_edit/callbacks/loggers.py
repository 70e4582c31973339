"""Loggers: W&B without an account, and a metrics.csv with the headline measures first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_edit.dashboards import has_wandb_key


class WandbDashboard(WandbLogger):
    """Lightning's WandbLogger, offline unless a W&B key is set; it never prompts for one.

    An offline run is stored in a folder and uploaded later with ``wandb sync``.

    Args:
        project: W&B project.
        name: Name of the run; chosen by W&B by default.
        save_dir: Where runs are written.
        offline: True or False overrides the choice by key.
        group: W&B group.
        tags: W&B tags.
    """

    def __init__(
        self,
        project: str = "lightning_edit",
        name: str | None = None,
        save_dir: str = "runs",
        offline: bool | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        chosen = not has_wandb_key() if offline is None else offline
        os.makedirs(save_dir, exist_ok=True)
        # WholePasses the mode as well, because an earlier login overrides the flag alone.
        mode: Any = "offline" if chosen else "online"
        super().__init__(
            name=name, save_dir=save_dir, project=project, offline=chosen, mode=mode, group=group, tags=tags
        )
        # wandb warns about this setting for any value.
        self._wandb_init.pop("anonymous", None)

    @property
    def folder(self) -> str:
        """The folder of the run's files."""
        return str(Path(self.experiment.dir).parent)


_FIRST = (
    "epoch",
    "step",
    "train/loss",
    "train/edit_loss",
    "train/locality_loss",
    "val/score",
    "val/edit_success/token_accuracy",
    "val/edit_success/exact_match",
    "val/generalization/token_accuracy",
    "val/generalization/exact_match",
)
"""First columns of metrics.csv."""


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, with the columns of metrics.csv in a readable order.

    Epoch, step, losses and headline measures come first, then locality, then other values of validation and training,
    and values of single edit sites last.

    Args:
        save_dir: Where runs are written.
        name: Name of the run's folder.
        version: Name of its version; the next number by default.
        flush_logs_every_n_steps: How often the file is written.
    """

    def __init__(
        self,
        save_dir: str = "runs",
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    def experiment(self) -> Any:
        """Lightning's writer, with column names sorted as described."""
        writer: Any = super().experiment
        if isinstance(getattr(writer, "metrics_keys", None), list):
            writer.metrics_keys = _Columns(writer.metrics_keys)
        return writer


class _Columns(list[str]):
    """Column names; Lightning's writer calls ``sort`` whenever there are new ones."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        super().__init__(names)

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        super().sort(key=key or _column_order, reverse=reverse)


def _column_order(name: str) -> tuple[int, str]:
    """Sort key of a column."""
    if name in _FIRST:
        return _FIRST.index(name), ""
    of_one_site = "." in name
    parts = (name.startswith("val/locality/"), name.startswith("val/"), name.startswith("train/"), True)
    return len(_FIRST) + (len(parts) if of_one_site else parts.index(True)), name
