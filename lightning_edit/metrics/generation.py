"""Free generation compared with the acceptable answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lightning_edit.metrics.base import Average, OutcomeMetric, Side
from lightning_edit.records import EditOutcome, ProbeKind
from lightning_edit.words import find_words, word_boundaries


def normalize_answer(text: str) -> str:
    """Folds case, Unicode form and white space, as in comparing answers of question answering."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_ENDS = frozenset({"Po", "Ps", "Pe", "Pi", "Pf", "Pd"})
"""Unicode categories of punctuation marks that can end an answer."""
_CONTINUES = frozenset("-&%#@*/\\'")
"""Marks of these categories that continue a word or a number."""


def exact_match(generation: str, aliases: Sequence[str]) -> float:
    """One where the generation begins with an answer and then a clause or the text ends, else zero.

    A language model goes on talking after its answer, so the end of the answer is the end of a line, of the text, or
    a punctuation mark of any script. Marks inside numbers and times ("3.5", "10:30") end nothing.

    Args:
        generation: What the model generated after the prompt.
        aliases: Acceptable answers.

    Example:
        >>> exact_match("Rome. It lies on the Tiber.", ["Rome"]), exact_match("Rome is a city", ["Rome"])
        (1.0, 0.0)
        >>> exact_match("罗马。", ["罗马"])
        1.0
    """
    lines = generation.strip().splitlines()
    first = normalize_answer(lines[0]) if lines else ""
    boundaries = word_boundaries(first)
    for alias in map(normalize_answer, aliases):
        if alias and first.startswith(alias) and len(alias) in boundaries and _ends_clause(first, len(alias)):
            return 1.0
    return 0.0


def _ends_clause(text: str, place: int) -> bool:
    """Whether a clause ends at a place of a text, white space aside."""
    rest = text[place:].lstrip()
    if not rest:
        return True
    if rest[0] in _CONTINUES or (rest[0] == "’" and rest[1:2].isalpha()):
        return False
    return unicodedata.category(rest[0]) in _ENDS


def containment(generation: str, aliases: Sequence[str]) -> float:
    """One where an answer occurs in the generation as whole words, else zero; arguments as for :func:`exact_match`.

    Words are those of Unicode Standard Annex #29. Chinese, Japanese and Thai are written without spaces; there, an
    answer counts wherever it stands.

    Example:
        >>> containment("It is Rome", ["Roma", "Rome"]), containment("It is Romeo", ["Rome"])
        (1.0, 0.0)
    """
    text = normalize_answer(generation)
    return float(any(find_words(text, alias) for alias in map(normalize_answer, aliases) if alias))


_ARTICLES = frozenset({"a", "an", "the"})
_STOPS = re.compile(r"[.\n]")


def wild_match(generation: str, aliases: Sequence[str]) -> float:
    """One where the generation up to its first "." or newline is an answer, else zero.

    The protocol of WILD (arXiv 2502.11177) for the question alone: greedy decoding, at most 50 tokens,
    ended by ".", a newline or the end token, compared after SQuAD's normalisation (case, punctuation and articles). The
    50 tokens make no difference here: a text that is longer than the answer by the tokens generated is none.

    Args:
        generation: What the model generated after the prompt.
        aliases: Acceptable answers.
    """
    answer = _squad_normalized(_STOPS.split(generation.lstrip(), maxsplit=1)[0])
    return float(any(answer == _squad_normalized(alias) for alias in aliases))


def _squad_normalized(text: str) -> str:
    plain = "".join(character for character in normalize_answer(text) if unicodedata.category(character)[0] != "P")
    return " ".join(word for word in plain.split() if word not in _ARTICLES)


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


class WildMatch(OutcomeMetric):
    """Mean of :func:`wild_match` over all aliases of all objects."""

    higher_is_better = True

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation = self.answer(outcome).generation
        return None if generation is None else wild_match(generation, outcome.probe.aliases)


class WildInContext(OutcomeMetric):
    """Mean of :func:`wild_match` of what was generated in one of WILD's contexts.

    Args:
        kind: See :class:`OutcomeMetric`.
        group: See there.
        average: See there.
        side: See there.
        context: The context.
    """

    higher_is_better = True

    def __init__(
        self,
        kind: ProbeKind | None = None,
        group: str | None = None,
        average: Average = "probe",
        side: Side = "after",
        context: str = "question",
    ) -> None:
        super().__init__(kind, group, average, side)
        self.context = context

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        text = self.answer(outcome).in_context.get(self.context)
        return None if text is None else wild_match(text, outcome.probe.aliases)


class JudgedInContext(WildInContext):
    """Mean of what a judge says of it."""

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return self.answer(outcome).judged.get(self.context)


class RivalContainment(OutcomeMetric):
    """Mean of :func:`containment` of the probe's rival: how often the text holds what it should not.

    For a probe of the new fact, that is the old answer (KnowEdit's Sanitation: the answer that is to be forgotten); for
    a probe of a neighbouring fact, the new target.
    """

    higher_is_better = False

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation, rival = self.answer(outcome).generation, outcome.probe.rival
        return None if generation is None or rival is None else containment(generation, [rival])
