"""Loads saved edits of whatever kind."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_edit.edits.base import FORMAT, MANIFEST, Edit
from lightning_edit.edits.provenance import Provenance
from lightning_edit.errors import EditError, SourceNotFoundError


def load_edit(folder: str | Path) -> Edit:
    """Loads a saved edit; a kind defined outside this package is known once its module is imported.

    Raises:
        SourceNotFoundError: If the folder holds no edit.
        EditError: If the manifest is broken, or of a kind or format that is not known.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise SourceNotFoundError(f"{folder}: no edit here ({MANIFEST} is missing); pass a folder that save() wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        stored, kind, details = manifest.pop("format"), manifest.pop("kind"), manifest.pop("details")
        if stored != FORMAT:
            raise EditError(f"{path}: format {stored}; this version reads format {FORMAT}, make the edit again")
        if kind not in Edit.kinds:
            raise EditError(
                f"{path}: kind {kind!r}; known are {sorted(Edit.kinds)}. Import the module that defines it first"
            )
        return Edit.kinds[kind].read(folder, details, Provenance.from_dict(manifest))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise EditError(f"{path}: not a manifest of an edit ({error!r}); save the edit again") from error
