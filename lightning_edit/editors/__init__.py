"""Editing methods, one file each."""

from lightning_edit.editors.alphaedit import AlphaEdit
from lightning_edit.editors.base import Capabilities, Editor
from lightning_edit.editors.checkpoint import load_editor
from lightning_edit.editors.emmet import EMMET
from lightning_edit.editors.gradient_step import GradientStep
from lightning_edit.editors.knowledge_neurons import KnowledgeNeurons
from lightning_edit.editors.malmen import MALMEN
from lightning_edit.editors.memit import MEMIT
from lightning_edit.editors.mend import MEND
from lightning_edit.editors.pmet import PMET
from lightning_edit.editors.rome import ROME
from lightning_edit.editors.serac import SERAC

__all__ = [
    "EMMET",
    "MALMEN",
    "MEMIT",
    "MEND",
    "PMET",
    "ROME",
    "SERAC",
    "AlphaEdit",
    "Capabilities",
    "Editor",
    "GradientStep",
    "KnowledgeNeurons",
    "load_editor",
]
