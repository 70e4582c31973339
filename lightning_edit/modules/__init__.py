"""LightningModules, one per family of editors."""

from lightning_edit.modules.base import EditingModule, Prediction
from lightning_edit.modules.evaluation import EvaluationSettings, Evaluator
from lightning_edit.modules.hypernetwork import HypernetworkEditing

__all__ = ["EditingModule", "EvaluationSettings", "Evaluator", "HypernetworkEditing", "Prediction"]
