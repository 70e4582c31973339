"""Language models: loading, fingerprints, layer maps and captured activations."""

from lightning_edit.models.fingerprint import Fingerprint, Likeness
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite, LayerMap, Orientation
from lightning_edit.models.loading import LanguageModelSettings, load_language_model
from lightning_edit.models.scoring import Score

__all__ = [
    "EditSite",
    "Fingerprint",
    "LanguageModel",
    "LanguageModelSettings",
    "LayerMap",
    "Likeness",
    "Orientation",
    "Score",
    "load_language_model",
]
