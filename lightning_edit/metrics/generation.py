"""Free generation compared with the acceptable answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lightning_edit.metrics.base import OutcomeMetric
from lightning_edit.records import EditOutcome


def normalize_answer(text: str) -> str:
    """Folds case, Unicode form and white space, as in comparing answers of question answering."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_match(generation: str, aliases: Sequence[str]) -> float:
    """One where the generation begins with an answer and then a clause or the text ends, else zero.

    A language model goes on talking after its answer, so the end of the answer is the end of a line, of the text, or
    a punctuation mark.

    Args:
        generation: What the model generated after the prompt.
        aliases: Acceptable answers.
    """
    lines = generation.strip().splitlines()
    first = normalize_answer(lines[0]) if lines else ""
    for alias in map(normalize_answer, aliases):
        if alias and first.startswith(alias) and re.match(r"\s*($|[.,;:!?()\"'“”…–—])", first[len(alias) :]):
            return 1.0
    return 0.0


def containment(generation: str, aliases: Sequence[str]) -> float:
    """One where an answer occurs in the generation as whole words, else zero; arguments as for :func:`exact_match`."""
    text = normalize_answer(generation)
    for alias in map(normalize_answer, aliases):
        if alias and re.search(rf"(?<!\w){re.escape(alias)}(?!\w)", text):
            return 1.0
    return 0.0


class ExactMatch(OutcomeMetric):
    """Mean of :func:`exact_match` over all aliases of all objects."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation = self.answer(outcome).generation
        return None if generation is None else exact_match(generation, outcome.probe.aliases)


class Containment(OutcomeMetric):
    """Mean of :func:`containment` over all aliases of all objects."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation = self.answer(outcome).generation
        return None if generation is None else containment(generation, outcome.probe.aliases)
