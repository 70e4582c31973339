"""SERAC: Semi-Parametric Editing with a Retrieval-Augmented Counterfactual Model (Mitchell et al. 2022, 2206.06520)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.memory_based import MemoryEditor
from lightning_edit.edits import CounterfactualResponder, EditSequence, Match, Memory, RoutedChanges, Router
from lightning_edit.edits.memory import named_requests
from lightning_edit.models.counterfactual import AdaptedBase, CounterfactualModel, SeparateModel
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.scope import CrossAttentionScope, EmbeddingScope, ScopeClassifier

KEYS = "keys"


class ScopeRouter(Router):
    """Routes a prompt x to the request e with the largest p(x in the scope of e), if it reaches a threshold.

    Args:
        classifier: The scope classifier.
        threshold: Smallest probability that counts as in scope.
    """

    scores_are_probabilities = True

    def __init__(self, classifier: ScopeClassifier, threshold: float) -> None:
        super().__init__()
        self.classifier, self.threshold = classifier, threshold

    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """See :meth:`Router.match`."""
        probabilities = self.classifier.log_similarity(prompts, memory.tensors[KEYS]).exp()
        return Match(probabilities, probabilities >= self.threshold)


class SERAC(MemoryEditor):
    """SERAC: stores requests in a memory, and answers prompts in their scope with a counterfactual model.

    A scope classifier gives p(x in the scope of e) for a prompt x and each stored request e. If the largest reaches the
    threshold, the counterfactual model answers "e, then x"; otherwise the unedited base model answers.

    Args:
        encoder: Sentence encoder of the scope classifier: Hub id, local folder, or the bundled name
            "all-minilm-l6-v2". Scope is then the distance of embeddings, p = exp(-γ |f(x) - f(x_e)|²).
        encoder_layers: Number of the encoder's uppermost layers that are trained and stored, in addition to a final
            projection. The paper trains all layers (-1); few layers keep the checkpoint small.
        cross_attention: A sequence classifier that reads both prompts together, in place of the embeddings.
        counterfactual: Another causal language model that answers in scope: Hub id or path. By default, the base model
            with a LoRA adapter.
        rank: Rank of the adapter.
        alpha: LoRA alpha: the adapter's output is scaled by alpha / rank.
        adapted_layers: Number of uppermost blocks with an adapter.
        threshold: Smallest probability that counts as in scope (the paper's 0.5).
    """

    capabilities = Capabilities(depends="nothing", fit_reads="records", mergeable=False)
    contradictions: Contradictions = "last"

    def __init__(
        self,
        encoder: str = "all-minilm-l6-v2",
        encoder_layers: int = 0,
        cross_attention: str | None = None,
        counterfactual: str | None = None,
        rank: int = 8,
        alpha: int = 16,
        adapted_layers: int = 10,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        ranges.at_least(-1, "editor", encoder_layers=encoder_layers)
        ranges.at_least(1, "editor", rank=rank, adapted_layers=adapted_layers)
        ranges.above(0, "editor", alpha=alpha)
        ranges.at_least(0, "editor", threshold=threshold)
        ranges.at_most(1, "editor", threshold=threshold)
        self.encoder, self.encoder_layers, self.cross_attention = encoder, encoder_layers, cross_attention
        self.counterfactual, self.rank, self.alpha = counterfactual, rank, alpha
        self.adapted_layers, self.threshold = adapted_layers, threshold
        self.scope: ScopeClassifier | None = None
        self.answering: CounterfactualModel | None = None

    def setup(self, model: LanguageModel) -> None:
        """Loads the scope classifier and builds the counterfactual model."""
        if self.scope is None:
            self.scope = (
                EmbeddingScope(self.encoder, self.encoder_layers)
                if self.cross_attention is None
                else CrossAttentionScope(self.cross_attention)
            )
            self.answering = (
                AdaptedBase(self.rank, self.alpha, self.adapted_layers)
                if self.counterfactual is None
                else SeparateModel(self.counterfactual)
            )
        self.answering_model.setup(model)
        self.to(model.device)

    @property
    def scope_classifier(self) -> ScopeClassifier:
        """See :attr:`MemoryEditor.scope_classifier`."""
        if self.scope is None:
            raise self.not_ready()
        return self.scope

    @property
    def answering_model(self) -> CounterfactualModel:
        """See :attr:`MemoryEditor.answering_model`."""
        if self.answering is None:
            raise self.not_ready()
        return self.answering

    @torch.no_grad()
    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        classifier = self.scope_classifier
        named = [request for group in groups for request in named_requests(group)]
        items = Memory(
            tuple((request,) for request in named), {KEYS: classifier.remember([request.prompt for request in named])}
        )
        memories = items.split([len(group) for group in groups])
        router = ScopeRouter(classifier, self.threshold)
        return GroupChanges(RoutedChanges(memories, router, CounterfactualResponder(self.answering_model)))
