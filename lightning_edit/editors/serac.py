"""SERAC: Semi-Parametric Editing with a Retrieval-Augmented Counterfactual Model (Mitchell et al. 2022, 2206.06520)."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.editors.base import Capabilities, Editor
from lightning_edit.edits import EditBatch, EditSequence, Provenance
from lightning_edit.edits.scoped import Memory, ScopedBatch, ScopeParts
from lightning_edit.models.counterfactual import AdaptedBase, CounterfactualModel, SeparateModel
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.scope import CrossAttentionScope, EmbeddingScope, ScopeClassifier
from lightning_edit.records import EditRequest


class SERAC(Editor):
    """SERAC: the requests are remembered; what falls under one of them is answered by a model that is shown it.

    A scope classifier gives p(x in the scope of e) for a prompt x and each remembered request e. If the largest reaches
    the threshold, a counterfactual model answers "e, then x"; otherwise the base model answers, untouched.

    Args:
        encoder: Sentence encoder of the scope classifier: Hub id, local folder, or the bundled name
            "all-minilm-l6-v2". Scope is then the distance of embeddings, p = exp(-γ |f(x) - f(x_e)|²).
        encoder_layers: How many of the encoder's uppermost layers are trained and stored, beside a projection behind
            it. The paper trains all of it (-1); few layers keep the checkpoint small.
        cross_attention: A sequence classifier that reads both prompts together, in place of the embeddings.
        counterfactual: Another causal language model that answers in scope: Hub id or path. By default it is the base
            itself with a LoRA adapter.
        rank: Rank of the adapter.
        alpha: The adapter's output is scaled by alpha / rank.
        adapted_layers: Number of uppermost blocks with an adapter.
        threshold: Smallest probability that counts as in scope (the paper's 0.5).
    """

    capabilities = Capabilities(depends=False, needs_fit=True, mergeable=False)

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
        self.parts.counterfactual.setup(model)
        self.to(model.device)

    @property
    def parts(self) -> ScopeParts:
        """What routes and answers.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """
        if self.scope is None or self.answering is None:
            raise self.not_ready()
        return ScopeParts(self.scope, self.answering, self.threshold)

    def edit_groups(
        self, model: LanguageModel, groups: Sequence[Sequence[EditRequest]], after: EditSequence | None = None
    ) -> EditBatch:
        """See :meth:`Editor.edit_groups`."""
        parts = self.parts
        requests = [request for group in groups for request in group]
        owner = [index for index, group in enumerate(groups) for _ in group]
        memory = Memory.of(requests, owner, parts.classifier)
        provenances = [Provenance.of(model, type(self).__name__, self.hyperparameters, group) for group in groups]
        return ScopedBatch(memory, parts, provenances)
