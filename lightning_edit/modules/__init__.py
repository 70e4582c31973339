"""LightningModules, one per family of editors."""

from lightning_edit.modules.base import EditingModule, Prediction
from lightning_edit.modules.evaluation import Evaluator
from lightning_edit.modules.evaluation_settings import EvaluationSettings, SequentialSettings
from lightning_edit.modules.hypernetwork import HypernetworkEditing
from lightning_edit.modules.locate import LocateEditing
from lightning_edit.modules.memory import MemoryEditing
from lightning_edit.modules.optimization import HypernetworkOptimization, MemoryOptimization, ScopedOptimization
from lightning_edit.modules.retrieval import RetrievalEditing
from lightning_edit.modules.scoped import ScopedEditing

__all__ = [
    "EditingModule",
    "EvaluationSettings",
    "Evaluator",
    "HypernetworkEditing",
    "HypernetworkOptimization",
    "LocateEditing",
    "MemoryEditing",
    "MemoryOptimization",
    "Prediction",
    "RetrievalEditing",
    "ScopedEditing",
    "ScopedOptimization",
    "SequentialSettings",
]
