"""Fluency: the n-gram entropy of generations."""

from __future__ import annotations

import math
from collections import Counter

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome
from lightning_edit.words import words

WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def ngram_entropy(text: str) -> float:
    """Computes the weighted bigram and trigram entropy of a text in bits (Meng et al. 2022, GE; KnowEdit's fluency).

    The mean of (2/3) H_2 and (4/3) H_3 with H_n = -Σ_g f(g) log2 f(g) over the relative frequencies of the n-grams.
    Words and punctuation marks are those of Unicode Standard Annex #29; in scripts without spaces every character
    cluster is a word. Repetition lowers the entropy. The papers multiply it by 100 in their tables; here it is
    in bits.

    Args:
        text: A generation; the entropy is zero for fewer than two words.

    Example:
        >>> round(ngram_entropy("one two three four five six seven eight"), 2)
        2.66
        >>> ngram_entropy("Berlin Berlin Berlin Berlin")
        0.0
    """
    tokens = words(text)
    return sum(weight * _entropy(tokens, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def _entropy(tokens: list[str], n: int) -> float:
    counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


class NGramEntropy(OutcomeMetric):
    """Mean of :func:`ngram_entropy` over the generations."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation = self.answer(outcome).generation
        return None if generation is None else ngram_entropy(generation)
