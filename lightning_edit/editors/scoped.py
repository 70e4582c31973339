"""Scoped hypernetwork edits: a weight change that applies only to prompts in the scope of its request."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.components import describe
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.clusters import BlockResponder
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.hypernetwork import HypernetworkEditor
from lightning_edit.editors.serac import KEYS, SERAC, ScopeRouter
from lightning_edit.edits import EditSequence, Memory, RoutedChanges, StackedFactors
from lightning_edit.edits.memory import named_requests
from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.scope import EmbeddingScope


class Scoped(Editor):
    """Applies the changes of a hypernetwork editor only to prompts in the scope of their requests.

    With p(x in the scope of e) from SERAC's classifier (Mitchell et al. 2022, 2206.06520), and the change ΔW_e that the
    hypernetwork computes for request e, a prompt x is answered with

        W + ΔW_e* if p(x in the scope of e*) ≥ threshold, e* = argmax_e p(x in the scope of e), and with W otherwise.

    A change then has to hold only for the wordings of one question. It need not tell that question from all others as
    well, which the inputs of upper layers do not allow: there, other subjects of the same relation look like a
    rephrase. Edits do not interfere with one another, however many there are. They cannot be merged into the weights.

    Args:
        editor: The editor that computes the changes: MEND, or MALMEN. Each request is edited by itself.
        encoder: Sentence encoder of the scope classifier; see :class:`SERAC`.
        encoder_layers: Number of the encoder's uppermost layers that are trained and stored.
        threshold: Smallest probability that counts as in scope.

    Raises:
        ConfigurationError: If the threshold is not between 0 and 1.
    """

    capabilities = Capabilities(
        depends="model", fit_reads="records", needs_grad=True, mergeable=False, takes_passes=True
    )
    contradictions: Contradictions = "last"

    def __init__(
        self,
        editor: HypernetworkEditor,
        encoder: str = "all-minilm-l6-v2",
        encoder_layers: int = 0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        ranges.at_least(-1, "editor", encoder_layers=encoder_layers)
        ranges.at_least(0, "editor", threshold=threshold)
        ranges.at_most(1, "editor", threshold=threshold)
        self.editor, self.encoder, self.encoder_layers, self.threshold = editor, encoder, encoder_layers, threshold
        self.scope: EmbeddingScope | None = None

    @classmethod
    def combined(cls, editor: HypernetworkEditor, serac: SERAC, threshold: float = 0.5) -> Scoped:
        """Combines two trained editors: one's changes, and the other's scope.

        Args:
            editor: The editor that computes the changes.
            serac: The editor whose scope classifier is used.
            threshold: Smallest probability that counts as in scope.

        Raises:
            ConfigurationError: If the scope classifier reads pairs instead of embeddings.
        """
        if not isinstance(serac.scope_classifier, EmbeddingScope):
            raise ConfigurationError("a scoped editor needs a scope of sentence embeddings, not of cross-attention")
        scoped = cls(editor, serac.encoder, serac.encoder_layers, threshold)
        scoped.scope = serac.scope_classifier
        return scoped

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """See :attr:`Editor.hyperparameters`; the other editor as its class and settings."""
        return {**super().hyperparameters, "editor": describe(self.editor)}

    def setup(self, model: LanguageModel) -> None:
        """Sets up the other editor, and loads the scope classifier."""
        self.editor.setup(model)
        if self.scope is None:
            self.scope = EmbeddingScope(self.encoder, self.encoder_layers)
        self.to(model.device)

    @property
    def scope_classifier(self) -> EmbeddingScope:
        """Classifier of whether a prompt is in the scope of a request.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """
        if self.scope is None:
            raise self.not_ready()
        return self.scope

    def lowest_layer(self, model: LanguageModel) -> int:
        """See :meth:`Editor.lowest_layer`."""
        return self.editor.lowest_layer(model)

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.editor.validate(model, groups)

    def compute_changes(
        self, model: LanguageModel, groups: Groups, after: EditSequence, passes: ForwardPasses | None = None
    ) -> GroupChanges:
        """See :meth:`Editor.compute_changes`.

        Raises:
            ConfigurationError: If the other editor's changes are not low-rank factors.
        """
        requests = [request for group in groups for request in group]
        changes, problems = self.editor.stacked_changes(model, [[request] for request in requests], passes)
        tensors: dict[str, Tensor] = {}
        for site, change in changes.items():
            if not isinstance(change, StackedFactors):
                raise ConfigurationError("editor.editor: changes have to be low-rank factors, as MEND's are")
            tensors |= {f"a/{site}": change.a, f"b/{site}": change.b}
        with torch.no_grad():
            tensors[KEYS] = self.scope_classifier.remember([request.prompt for request in requests])
        # Named within each edit, as ids need to be unique only there.
        named = [request for group in groups for request in named_requests(group)]
        items = Memory(tuple((request,) for request in named), tensors)
        good = [place for place in range(len(requests)) if place not in problems]
        edits = [edit for edit, group in enumerate(groups) for _ in group]
        memories = items.select(good).split(
            [sum(edits[place] == edit for place in good) for edit in range(len(groups))]
        )
        router = ScopeRouter(self.scope_classifier, self.threshold)
        return GroupChanges(RoutedChanges(memories, router, BlockResponder(list(changes))), problems)
