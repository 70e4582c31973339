"""Base class of editors that :class:`lightning_edit.modules.MemoryEditing` trains."""

from __future__ import annotations

from abc import abstractmethod

from lightning_edit.editors.base import Editor
from lightning_edit.models.counterfactual import CounterfactualModel
from lightning_edit.models.scope import ScopeClassifier


class MemoryEditor(Editor):
    """Base class of editors with a memory of requests, a trained scope classifier and a trained counterfactual model.

    The scope classifier decides which stored request a prompt belongs to, and the counterfactual model answers it.
    """

    threshold: float
    """Smallest probability that counts as in scope."""

    @property
    @abstractmethod
    def scope_classifier(self) -> ScopeClassifier:
        """Classifier of whether a prompt is in the scope of a stored request.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """

    @property
    @abstractmethod
    def answering_model(self) -> CounterfactualModel:
        """Counterfactual model, which answers prompts in the scope of a request.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """
