"""SCR: Selective Contextual Reasoning (He et al. 2025, arXiv 2503.05212 and 2505.18690)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.edits import EditSequence, Match, Memory, RoutedChanges, Router, TextResponder
from lightning_edit.edits.memory import named_requests
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.sentence_encoder import SentenceEncoder

EMBEDDINGS = "embeddings"
REFUSALS = ("no relevant fact", "no relevant information", "false")
"""Phrases in the model's confirmation that mean no fact is relevant, as in the authors' code."""
CONFIRMATION = (
    "Given a set of facts and a question, return the fact (the entire sentence) that best matches the core knowledge "
    'asked in the question. If the question cannot be answered with the facts, return "no relevant fact."\n\n'
    "Facts: {facts}\nQuestion: {question}\n\nOutput:"
)
"""The authors' prompt of the selection step."""


class FactRetriever(Router):
    """Retrieves the facts closest to a prompt and lets the model confirm that one of them is relevant.

    Args:
        encoder: Sentence encoder: Hub id, local folder, or the bundled name "all-minilm-l6-v2".
        retrieved: Number of facts that the model chooses from.
        threshold: Smallest cosine similarity of a relevant fact.
        confirm: Whether the model confirms the fact; otherwise the closest fact above the threshold is used.
        confirmation_tokens: Length of the model's choice in tokens.
    """

    def __init__(
        self, encoder: str, retrieved: int, threshold: float, confirm: bool, confirmation_tokens: int = 50
    ) -> None:
        super().__init__()
        self.encoder, self.retrieved, self.threshold = encoder, retrieved, threshold
        self.confirm, self.confirmation_tokens = confirm, confirmation_tokens
        self._sentences = SentenceEncoder(encoder)

    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """See :meth:`Router.match`; the confirmed fact gets the highest score."""
        similarity = self._sentences.embed(prompts).cpu() @ memory.tensors[EMBEDDINGS].cpu().T
        similarity = similarity.masked_fill(~allowed, -2.0)
        hits = similarity >= self.threshold
        if not self.confirm:
            return Match(similarity, hits)
        nearest = similarity.topk(min(self.retrieved, len(memory)), dim=1).indices.tolist()
        candidates = [[item for item in items if hits[row, item]] for row, items in enumerate(nearest)]
        rows_to_confirm = [row for row, items in enumerate(candidates) if items]
        texts = [
            _confirmation([memory.texts[item] for item in candidates[row]], prompts[row]) for row in rows_to_confirm
        ]
        outputs = model.generate(texts, self.confirmation_tokens) if texts else []
        confirmed = torch.zeros_like(hits)
        for row, output in zip(rows_to_confirm, outputs, strict=True):
            if not any(refusal in output.lower() for refusal in REFUSALS):
                confirmed[row, _chosen(output, candidates[row], memory)] = True
        return Match(torch.where(confirmed, similarity + 2.0, similarity), confirmed)


def _confirmation(facts: Sequence[str], question: str) -> str:
    return CONFIRMATION.replace("{facts}", "\n".join(fact.strip() for fact in facts)).replace("{question}", question)


def _chosen(output: str, candidates: Sequence[int], memory: Memory) -> int:
    """Returns the candidate that shares most words with the model's choice; the closest one if none does."""
    words = set(output.lower().split())
    overlap = [len(words & set(memory.texts[item].lower().split())) for item in candidates]
    return candidates[overlap.index(max(overlap))]


class SCR(Editor):
    """SCR: stores facts as sentences; the relevant one is retrieved, confirmed by the model and put before a prompt.

    The model is shown the facts closest to a prompt by a sentence encoder, and returns the relevant one or "no relevant
    fact". In scope it answers "Answer the question based on the Fact. Fact: … Question: … Answer:", otherwise the bare
    prompt. The authors continue with the model's wording of the fact; here the stored sentence that shares most words
    with it is used.

    Args:
        encoder: Sentence encoder: Hub id, local folder, or the bundled name "all-minilm-l6-v2". (The authors use
            contriever-msmarco.)
        retrieved: Number of facts that the model chooses from (the authors' 5).
        threshold: Smallest cosine similarity of a relevant fact. The authors have none (-1).
        confirm: Whether the model confirms the fact. Small models cannot; the threshold alone then decides.
        fact: Template of a fact.
        query: Template of the model's input in scope.
    """

    capabilities = Capabilities(depends="nothing", mergeable=False)
    contradictions: Contradictions = "last"

    def __init__(
        self,
        encoder: str = "all-minilm-l6-v2",
        retrieved: int = 5,
        threshold: float = -1.0,
        confirm: bool = True,
        fact: str = "{prompt} {target}.",
        query: str = "Answer the question based on the Fact.\n\nFact: {text}\nQuestion: {prompt}\nAnswer:",
    ) -> None:
        super().__init__()
        ranges.at_least(1, "editor", retrieved=retrieved)
        ranges.at_least(-1, "editor", threshold=threshold)
        self.encoder, self.retrieved, self.threshold = encoder, retrieved, threshold
        self.confirm, self.fact, self.query = confirm, fact, query
        self._router = FactRetriever(encoder, retrieved, threshold, confirm)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        encoder, memories = SentenceEncoder(self.encoder), []
        for group in groups:
            texts = tuple(
                self.fact.replace("{prompt}", request.prompt).replace("{target}", request.target) for request in group
            )
            requests = tuple((request,) for request in named_requests(group))
            memories.append(Memory(requests, {EMBEDDINGS: encoder.embed(texts)}, texts))
        return GroupChanges(RoutedChanges(memories, self._router, TextResponder(self.query)))
