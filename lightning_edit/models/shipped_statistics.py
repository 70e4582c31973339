"""Key statistics that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_edit.models.fingerprint import Fingerprint, Likeness
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.statistics import MANIFEST, KeyStatistics
from lightning_edit.shipped import checkpoints_folder


def shipped_statistics(model: LanguageModel, layers: Sequence[int]) -> KeyStatistics | None:
    """Loads the statistics in checkpoints/ for a model and some layers; None if there are none.

    Args:
        model: The model, in the precision it is used in.
        layers: The layers whose MLP output projections are needed.
    """
    sites = {model.layer_map.site(layer).name for layer in layers}
    for manifest in sorted(checkpoints_folder().glob(f"*/{MANIFEST}")):
        if _belongs_to(manifest, model):
            statistics = KeyStatistics.load(manifest.parent)
            if sites <= statistics.moments.keys():
                return statistics
    return None


def _belongs_to(manifest: Path, model: LanguageModel) -> bool:
    """Whether the manifest is for this model; tensors are read, and checksums verified, only on loading."""
    fingerprint = Fingerprint.from_dict(json.loads(manifest.read_text("utf-8"))["fingerprint"])
    if fingerprint.compare(model.fingerprint) is not Likeness.SAME:
        return False
    return not fingerprint.text_differences(model.fingerprint, chat_template=False)
