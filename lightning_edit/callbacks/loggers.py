"""W&B logging that needs no account."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lightning_edit.dashboards import has_wandb_key


class WandbDashboard(WandbLogger):
    """Lightning's WandbLogger, offline unless a W&B key is set; it never asks.

    An offline run lies in a folder and is sent later with ``wandb sync``.

    Args:
        project: W&B project.
        name: Name of the run; W&B invents one if none is given.
        save_dir: Where runs are written.
        offline: True or False overrules the choice by key.
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
        # The mode is passed as well, because the flag alone is overruled by an earlier login.
        mode: Any = "offline" if chosen else "online"
        super().__init__(
            name=name, save_dir=save_dir, project=project, offline=chosen, mode=mode, group=group, tags=tags
        )
        # wandb warns of this setting whatever its value.
        self._wandb_init.pop("anonymous", None)

    @property
    def folder(self) -> str:
        """The folder of the run's files."""
        return str(Path(self.experiment.dir).parent)
