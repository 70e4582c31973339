"""Consistency: TF-IDF similarity of generations with reference texts."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome
from lightning_edit.words import words


def tfidf_similarity(generation: str, references: Sequence[str]) -> float:
    """Computes the cosine similarity of TF-IDF vectors (Meng et al. 2022, RS).

    The inverse document frequencies are fitted on the references and the generation. ROME's authors use a separately
    published vocabulary fitted on Wikipedia, so the numbers are only comparable with each other.

    Args:
        generation: What the model generated.
        references: Texts about the new object, at least one; they are joined into one document for the comparison.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not generation.strip():
        return 0.0
    vectorizer = TfidfVectorizer(tokenizer=_tokens, token_pattern=None).fit([*references, generation])
    vectors = vectorizer.transform([generation, " ".join(references)])
    return float((vectors[0] @ vectors[1].T).toarray()[0, 0])


def _tokens(text: str) -> list[str]:
    return [word for word in words(text) if any(character.isalnum() for character in word)]


class TfidfConsistency(OutcomeMetric):
    """Mean of :func:`tfidf_similarity` over the probes that have references."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation, references = self.answer(outcome).generation, outcome.probe.references
        return tfidf_similarity(generation, references) if generation is not None and references else None
