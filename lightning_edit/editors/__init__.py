"""Editing methods, one file each."""

from lightning_edit.editors.adalora import AdaLoRA, Budget
from lightning_edit.editors.alphaedit import AlphaEdit
from lightning_edit.editors.base import Capabilities, Editor
from lightning_edit.editors.checkpoint import load_editor
from lightning_edit.editors.emmet import EMMET
from lightning_edit.editors.fine_tuning import FineTuning
from lightning_edit.editors.grace import GRACE
from lightning_edit.editors.gradient_step import GradientStep
from lightning_edit.editors.ice import ICE
from lightning_edit.editors.ike import IKE
from lightning_edit.editors.knowledge_neurons import KnowledgeNeurons
from lightning_edit.editors.lora import LoRA
from lightning_edit.editors.malmen import MALMEN
from lightning_edit.editors.melo import MELO
from lightning_edit.editors.memit import MEMIT
from lightning_edit.editors.mend import MEND
from lightning_edit.editors.pmet import PMET
from lightning_edit.editors.prompts import ContextSettings
from lightning_edit.editors.rome import ROME
from lightning_edit.editors.scoped import Scoped
from lightning_edit.editors.scr import SCR
from lightning_edit.editors.serac import SERAC
from lightning_edit.editors.side_memory_training import Margins
from lightning_edit.editors.tuning import TuningSettings
from lightning_edit.editors.value_search import ValueSettings
from lightning_edit.editors.wise import WISE

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
    "Budget",
    "Capabilities",
    "ContextSettings",
    "Editor",
    "FineTuning",
    "GradientStep",
    "KnowledgeNeurons",
    "LoRA",
    "Margins",
    "Scoped",
    "TuningSettings",
    "ValueSettings",
    "load_editor",
]
