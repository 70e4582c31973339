"""Loads saved edits of any kind."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from lightning_edit.edits.base import FORMAT, MANIFEST, STATE, Edit, read_tensors
from lightning_edit.edits.provenance import Provenance
from lightning_edit.errors import EditError, LightningEditError, SourceNotFoundError
from lightning_edit.files import read_folder
from lightning_edit.hub import local_copy
from lightning_edit.manifests import read_manifest


def load_edit(folder: str | Path, revision: str | None = None) -> Edit:
    """Loads a saved edit; for kinds defined outside this package, import their module first.

    Args:
        folder: The folder, or a repository on the Hub (hf://owner/name).
        revision: Branch, tag or commit on the Hub.

    Raises:
        SourceNotFoundError: If the folder holds no edit, or there is no such repository.
        EditError: If the manifest is broken, or of an unknown kind or format.
    """
    folder = local_copy(folder, [MANIFEST, "*.safetensors"], revision)
    return read_folder(folder, lambda: _read(folder))


def _read(folder: Path) -> Edit:
    path = folder / MANIFEST
    if not path.is_file():
        raise SourceNotFoundError(f"{folder}: no edit here ({MANIFEST} is missing); pass a folder that save() wrote")
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        raise EditError(f"{path}: {error}; save the edit again, or get another copy") from error
    stored, kind = manifest.pop("format", None), manifest.pop("kind", None)
    if stored != FORMAT:
        raise EditError(f"{path}: format {stored}; this version reads format {FORMAT}, make the edit again")
    if kind not in Edit.kinds:
        raise EditError(
            f"{path}: kind {kind!r}; known are {sorted(Edit.kinds)}. If another module defines it and you trust it, "
            "add --allow MODULE, set LIGHTNING_EDIT_ALLOW=MODULE in the environment, or import it first"
        )
    try:
        edit = Edit.kinds[kind].read(folder, manifest.pop("details"), Provenance.from_dict(manifest))
        if (folder / STATE).is_file():
            edit.state = read_tensors(folder / STATE)
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, LightningEditError):
            raise
        raise EditError(f"{path}: not a manifest of an edit ({error!r}); save the edit again") from error
    return edit
