"""Knowledge editing of language models with PyTorch Lightning.

>>> from lightning_edit import EditRequest
>>> EditRequest("The capital of France is", target="Rome", subject="France").subject_span
(15, 21)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_edit.data import EditDataModule
    from lightning_edit.editors import (
        EMMET,
        GRACE,
        ICE,
        IKE,
        MALMEN,
        MELO,
        MEMIT,
        MEND,
        PMET,
        ROME,
        SCR,
        SERAC,
        WISE,
        AdaLoRA,
        AlphaEdit,
        Editor,
        FineTuning,
        GradientStep,
        KnowledgeNeurons,
        LoRA,
        Scoped,
        load_editor,
    )
    from lightning_edit.edits import Edit, EditSequence, load_edit
    from lightning_edit.models import LanguageModel, load_language_model
    from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind

__all__ = [
    "EMMET",
    "GRACE",
    "ICE",
    "IKE",
    "MALMEN",
    "MELO",
    "MEMIT",
    "MEND",
    "PMET",
    "ROME",
    "SCR",
    "SERAC",
    "WISE",
    "AdaLoRA",
    "AlphaEdit",
    "Edit",
    "EditDataModule",
    "EditRecord",
    "EditRequest",
    "EditSequence",
    "Editor",
    "FineTuning",
    "GradientStep",
    "KnowledgeNeurons",
    "LanguageModel",
    "LoRA",
    "Probe",
    "ProbeKind",
    "Scoped",
    "__version__",
    "load_edit",
    "load_editor",
    "load_language_model",
]

_HOMES = {
    "data": ("EditDataModule",),
    "edits": ("Edit", "EditSequence", "load_edit"),
    "models": ("LanguageModel", "load_language_model"),
    "records": ("EditRecord", "EditRequest", "Probe", "ProbeKind"),
}
"""Public names by subpackage; all others come from ``editors``."""


def __getattr__(name: str) -> Any:
    """Imports public names on first use, which keeps importing the package fast."""
    if name == "__version__":
        from importlib.metadata import version

        return version("lightning-edit")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "editors")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
