"""Atomic saving of checkpoints, and loading without code execution."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_edit.files import replace_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves a checkpoint to a temporary file and renames it, so a killed run keeps the previous one.

    Lightning writes through the system's temporary folder, which may be on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves a checkpoint.

        Raises:
            DiskFullError: If the disk is full.
        """
        with replace_file(Path(os.fspath(path)), _size(checkpoint)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint of this package; see :func:`lightning_edit.editors.checkpoint.read_checkpoint`."""
        from lightning_edit.editors.checkpoint import read_checkpoint

        return read_checkpoint(path)


def _size(values: Any) -> int:
    """Counts the bytes of all tensors in nested dictionaries and lists."""
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, dict):
        return sum(map(_size, values.values()))
    return sum(map(_size, values)) if isinstance(values, list | tuple) else 0
