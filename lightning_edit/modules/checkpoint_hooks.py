"""What a module adds to Lightning's checkpoints, and checks when one is loaded."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lightning_edit.editors.base import Editor
from lightning_edit.editors.checkpoint import (
    DIGEST,
    KEY,
    check_checkpoint,
    describe,
    have_equal_shapes,
    state_digest,
)
from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import LanguageModelSettings


def write_description(
    checkpoint: dict[str, Any], editor: Editor, model: LanguageModel, settings: LanguageModelSettings
) -> None:
    """Adds the editor, the base model and the digest of the weights to a checkpoint."""
    checkpoint[KEY] = describe(editor, model, asdict(settings))
    checkpoint[KEY][DIGEST] = state_digest(checkpoint["state_dict"])


def load_description(
    checkpoint: dict[str, Any], editor: Editor, model: LanguageModel, state: dict[str, Tensor]
) -> None:
    """Refuses a checkpoint of another base model or editor, and lets a run resume within an epoch.

    Args:
        checkpoint: The checkpoint; its counters are corrected in place.
        editor: The editor that its weights are loaded into.
        model: The base model.
        state: The module's state_dict, whose shapes the checkpoint must have.

    Raises:
        BaseModelMismatchError: If the checkpoint belongs to another base model.
        ConfigurationError: If it holds another editor, or one of another shape.
    """
    if KEY not in checkpoint:
        raise ConfigurationError("the checkpoint was not made by lightning_edit")
    _resume_within_epoch(checkpoint)
    check_checkpoint(checkpoint, model)
    mine, stored = describe(editor, model, {})["editor"], checkpoint[KEY]["editor"]
    if mine["class_path"] != stored["class_path"]:
        raise ConfigurationError(
            f"the checkpoint holds {stored['class_path']}, but model.editor is {mine['class_path']}"
        )
    if not have_equal_shapes(editor, state, checkpoint["state_dict"]):
        raise ConfigurationError(
            f"the checkpoint's editor was made with {stored['init_args']}, but model.editor is configured with "
            f"{mine['init_args']}; use the same settings"
        )
    _warn_about_settings(stored["init_args"], mine["init_args"])


def _warn_about_settings(stored: dict[str, Any], mine: dict[str, Any]) -> None:
    """Warns if an editor's weights are used with other settings than in training."""
    other = [
        f"{name} ({stored[name]} then, {value} now)"
        for name, value in mine.items()
        if name in stored and json.dumps(stored[name], default=str) != json.dumps(value, default=str)
    ]
    if other:
        warnings.warn(f"the checkpoint's editor was made with other settings: {', '.join(other)}", stacklevel=3)


def _resume_within_epoch(checkpoint: dict[str, Any]) -> None:
    """Lets a run that was stopped within an epoch (by max_steps or max_time) resume within it.

    Lightning ends the epoch before it stops, so a resumed run would begin with the next one. The counters are set to
    their values in a checkpoint written between two batches.
    """
    data = next(
        (content for name, content in checkpoint.items() if name == "EditDataModule" and isinstance(content, dict)), {}
    )
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if not data.get("batches_done") or not loops:
        return
    epochs, done = int(data["epoch"]), int(data["batches_done"])
    if loops["epoch_progress"]["current"]["processed"] <= epochs:
        # Written between two batches.
        return
    for scope in ("total", "current"):
        loops["epoch_progress"][scope].update(ready=epochs + 1, started=epochs + 1, processed=epochs, completed=epochs)
    batches = loops["epoch_loop.batch_progress"]
    batches["current"].update(ready=done, started=done, processed=done, completed=done)
    batches["is_last_batch"] = False
