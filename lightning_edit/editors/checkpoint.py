"""Saves and loads editors as checkpoints, with a description of editor and base model."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_edit import components
from lightning_edit.editors.base import Editor
from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.files import replace_file
from lightning_edit.hub import MARK, local_copy
from lightning_edit.models.fingerprint import Fingerprint
from lightning_edit.models.language_model import LanguageModel

KEY = "lightning_edit"
"""Key of this package's entry in a Lightning checkpoint."""
DIGEST = "digest"
"""Key of the weights' digest in that entry."""
PREFIX = "editor."
"""Prefix of the editor's tensors in the checkpoint's state_dict."""


def describe(editor: Editor, model: LanguageModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Describes editor and base model as plain data, for a checkpoint's entry.

    Args:
        editor: The editor.
        model: The base model.
        settings: How the base model was loaded.
    """
    return {
        "editor": components.describe(editor),
        "base": {
            "name": model.name,
            "revision": model.revision,
            "fingerprint": model.fingerprint.to_dict(),
            "settings": settings,
        },
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this package without executing anything in it.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If it is not a checkpoint of this package.
    """
    if "://" in str(path) and not str(path).startswith(MARK):
        raise SourceNotFoundError(f"{path}: checkpoints are read from local files; download it first")
    path = checkpoint_file(path)
    try:
        _check_sums(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many exception types for a broken or unsafe file
        raise ConfigurationError(f"{path}: not a checkpoint that can be loaded safely ({error})") from error
    if not isinstance(content, dict) or KEY not in content:
        names = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigurationError(f"{path}: not a checkpoint of lightning_edit; it has {names}")
    if not isinstance(content[KEY], dict) or content[KEY].get(DIGEST) != state_digest(content.get("state_dict", {})):
        raise ConfigurationError(f"{path}: the weights do not match their digest; the file is damaged")
    return content


def checkpoint_file(path: str | Path) -> Path:
    """Finds a checkpoint's file, locally or in a repository on the Hub (hf://owner/name).

    Raises:
        SourceNotFoundError: If there is none.
    """
    local = local_copy(path, ["*.ckpt"])
    files = [local] if local.is_file() else sorted(local.glob("*.ckpt"))
    if not files:
        raise SourceNotFoundError(
            f"{path}: no such checkpoint; pass the path of a .ckpt file, or a repository that holds one"
        )
    if len(files) > 1:
        raise SourceNotFoundError(f"{path}: holds {[file.name for file in files]}; pass the path of one of them")
    return files[0]


def _check_sums(path: Path) -> None:
    """Verifies the archive's checksums, which torch.load does not; they also cover the optimizer's state.

    Raises:
        zipfile.BadZipFile: If a checksum is wrong.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def state_digest(state: dict[str, Any]) -> str:
    """Computes the SHA-256 of names, shapes, dtypes and contents of tensors."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def check_checkpoint(content: dict[str, Any], model: LanguageModel) -> str | None:
    """Refuses a checkpoint of another base model; returns a warning if the precision differs."""
    base = content[KEY]["base"]
    return model.check_base(Fingerprint.from_dict(base["fingerprint"]), "checkpoint", base["name"])


def export_checkpoint(path: str | Path, output: str | Path, model: LanguageModel, dtype: torch.dtype) -> Path:
    """Exports an editor alone from a checkpoint, without the optimiser's state, with parameters in another precision.

    Buffers, such as running statistics, keep their precision. The file cannot be used to resume training.

    Args:
        path: The checkpoint of a run.
        output: The file to write, atomically.
        model: The base model.
        dtype: Precision of the parameters in the file; they are loaded as float32.

    Raises:
        ConfigurationError: If a parameter is beyond the range of ``dtype``, or as for :func:`load_editor`.
    """
    content, editor = read_checkpoint(path), load_editor(path, model)
    parameters = dict(editor.named_parameters())
    state = {}
    for name, value in editor.state_dict().items():
        kept = value.to(dtype) if name in parameters else value
        if not bool(kept.isfinite().all()):
            raise ConfigurationError(f"{path}: {name} is beyond the range of {dtype}; export in float32")
        state[PREFIX + name] = kept
    content[KEY] = {**content[KEY], DIGEST: state_digest(state)}
    kept_entries = {key: content[key] for key in (KEY, "pytorch-lightning_version", "epoch", "global_step")}
    with replace_file(Path(output), sum(value.nbytes for value in state.values())) as temporary:
        torch.save({**kept_entries, "state_dict": state}, temporary)
    return Path(output)


def save_editor(editor: Editor, model: LanguageModel, path: str | Path) -> Path:
    """Saves an editor as a checkpoint for :func:`load_editor`; it cannot be used to resume training.

    Args:
        editor: The editor, set up on ``model``.
        model: The base model.
        path: The file to write, atomically.
    """
    settings = {"name_or_path": model.name, "revision": model.revision}
    state = {PREFIX + name: value for name, value in editor.state_dict().items()}
    content = {KEY: {**describe(editor, model, settings), DIGEST: state_digest(state)}, "state_dict": state}
    with replace_file(Path(path), sum(value.nbytes for value in state.values())) as temporary:
        torch.save(content, temporary)
    return Path(path)


def load_editor(path: str | Path, model: LanguageModel) -> Editor:
    """Loads a fitted editor from a checkpoint, in eval mode.

    Raises:
        BaseModelMismatchError: If the checkpoint belongs to another base model.
        ConfigurationError: If the file is not a checkpoint of this package.
    """
    content = read_checkpoint(path)
    check_checkpoint(content, model)
    editor = components.build(content[KEY]["editor"], Editor, str(path))
    editor.setup(model)
    editor.load_state_dict(_weights(content))
    return editor.eval()


def load_weights(path: str | Path, editor: Editor, model: LanguageModel) -> None:
    """Loads the weights of a checkpoint into an editor that is set up.

    Raises:
        BaseModelMismatchError: If the checkpoint belongs to another base model.
        ConfigurationError: If it holds another editor, or one of another shape.
    """
    content = read_checkpoint(path)
    check_checkpoint(content, model)
    stored, weights, expected = content[KEY]["editor"], _weights(content), editor.state_dict()
    mine = components.describe(editor)
    if stored["class_path"] != mine["class_path"] or not have_equal_shapes(editor, expected, weights):
        raise ConfigurationError(
            f"{path} holds {stored['class_path']} made with {stored['init_args']}, but the editor is "
            f"{mine['class_path']} with {mine['init_args']}; start from one of the same shape"
        )
    editor.load_state_dict(weights)


def have_equal_shapes(editor: Editor, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> bool:
    """Whether a stored state has the names and shapes of an editor's, except for shapes that depend on its fit.

    Args:
        editor: The editor.
        expected: Its state, or that of a module that holds it.
        stored: The stored state.
    """

    def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size | None]:
        fitted = editor.fitted_buffers
        return {name: None if name.rpartition(".")[2] in fitted else value.shape for name, value in state.items()}

    return shapes(expected) == shapes(stored)


def _weights(content: dict[str, Any]) -> dict[str, Any]:
    state = content["state_dict"].items()
    return {key.removeprefix(PREFIX): value for key, value in state if key.startswith(PREFIX)}
