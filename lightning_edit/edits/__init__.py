"""The result of editing: what changes a model, how it is applied, taken back, saved and merged."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_edit.edits.base import FORMAT, MANIFEST, Edit, Provenance, Scorer
from lightning_edit.edits.batch import EditBatch, WeightEditBatch
from lightning_edit.edits.deltas import Delta, DenseDelta, FactoredDelta
from lightning_edit.edits.scoped import ScopedBatch, ScopedEdit
from lightning_edit.edits.sequence import EditSequence
from lightning_edit.edits.stacked import StackedDelta, StackedFactors, StackedMatrices
from lightning_edit.edits.weight import WeightEdit
from lightning_edit.errors import EditError, SourceNotFoundError

__all__ = [
    "Delta",
    "DenseDelta",
    "Edit",
    "EditBatch",
    "EditSequence",
    "FactoredDelta",
    "Provenance",
    "ScopedBatch",
    "ScopedEdit",
    "Scorer",
    "StackedDelta",
    "StackedFactors",
    "StackedMatrices",
    "WeightEdit",
    "WeightEditBatch",
    "load_edit",
]


def load_edit(folder: str | Path) -> Edit:
    """Loads a saved edit of whatever kind.

    Raises:
        SourceNotFoundError: If the folder holds no edit.
        EditError: If the manifest is broken, or of a kind or format that this version does not know.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise SourceNotFoundError(f"{folder}: no edit here ({MANIFEST} is missing); pass a folder that save() wrote")
    kinds: dict[str, type[Edit]] = {kind.kind: kind for kind in (WeightEdit, ScopedEdit)}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        stored, kind, details = manifest.pop("format"), manifest.pop("kind"), manifest.pop("details")
        if stored != FORMAT or kind not in kinds:
            raise EditError(
                f"{path}: format {stored}, kind {kind!r}; this version reads format {FORMAT}, {list(kinds)}"
            )
        return kinds[kind].read(folder, details, Provenance.from_dict(manifest))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EditError(f"{path}: not a manifest of an edit ({error!r}); save the edit again") from error
