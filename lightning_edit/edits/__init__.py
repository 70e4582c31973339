"""Edits: changes to a model that can be applied, undone, saved and merged."""

from lightning_edit.edits.base import Edit, Scorer, routes_of
from lightning_edit.edits.batch import Changes, EditBatch
from lightning_edit.edits.deltas import Delta, DenseDelta, FactoredDelta
from lightning_edit.edits.loading import load_edit
from lightning_edit.edits.memory import Memory
from lightning_edit.edits.provenance import BaseModel, Provenance
from lightning_edit.edits.responders import CounterfactualResponder, SiteResponder, TextResponder
from lightning_edit.edits.routed import RoutedChanges, RoutedEdit
from lightning_edit.edits.routing import Match, Responder, Router
from lightning_edit.edits.row_scorer import RowScorer
from lightning_edit.edits.sequence import EditSequence
from lightning_edit.edits.stacked import StackedDelta, StackedFactors, StackedMatrices
from lightning_edit.edits.weight import WeightChanges, WeightEdit

__all__ = [
    "BaseModel",
    "Changes",
    "CounterfactualResponder",
    "Delta",
    "DenseDelta",
    "Edit",
    "EditBatch",
    "EditSequence",
    "FactoredDelta",
    "Match",
    "Memory",
    "Provenance",
    "Responder",
    "RoutedChanges",
    "RoutedEdit",
    "Router",
    "RowScorer",
    "Scorer",
    "SiteResponder",
    "StackedDelta",
    "StackedFactors",
    "StackedMatrices",
    "TextResponder",
    "WeightChanges",
    "WeightEdit",
    "load_edit",
    "routes_of",
]
