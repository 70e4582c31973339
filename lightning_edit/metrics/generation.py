"""Compares free generations with the acceptable answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from lightning_edit.metrics.base import Average, OutcomeMetric, Side
from lightning_edit.records import EditOutcome, ProbeKind
from lightning_edit.words import find_words, word_boundaries


def normalize_answer(text: str) -> str:
    """Normalises case, Unicode form and white space, as usual in question answering."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_ENDS = frozenset({"Po", "Ps", "Pe", "Pi", "Pf", "Pd"})
"""Unicode categories of punctuation marks that can end an answer."""
_CONTINUES = frozenset("-&%#@*/\\'")
"""Marks of these categories that continue a word or a number."""


def exact_match(generation: str, aliases: Sequence[str]) -> float:
    """Returns 1.0 if the generation starts with an answer that ends a clause or the text, else 0.0.

    A language model continues after its answer, so the answer ends at the end of a line or of the text, or at a
    punctuation mark of any script. Marks inside numbers and times ("3.5", "10:30") do not end it.

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
    """Whether a clause ends at a position of a text, ignoring white space."""
    rest = text[place:].lstrip()
    if not rest:
        return True
    if rest[0] in _CONTINUES or (rest[0] == "’" and rest[1:2].isalpha()):
        return False
    return unicodedata.category(rest[0]) in _ENDS


def containment(generation: str, aliases: Sequence[str]) -> float:
    """Returns 1.0 if the generation contains an answer as whole words, else 0.0; arguments as in :func:`exact_match`.

    Words are those of Unicode Standard Annex #29. Chinese, Japanese and Thai are written without spaces; there an
    answer may occur anywhere.

    Example:
        >>> containment("It is Rome", ["Roma", "Rome"]), containment("It is Romeo", ["Rome"])
        (1.0, 0.0)
    """
    text = normalize_answer(generation)
    return float(any(find_words(text, alias) for alias in map(normalize_answer, aliases) if alias))


_ARTICLES = frozenset({"a", "an", "the"})
_STOPS = re.compile(r"[.\n]")


def wild_match(generation: str, aliases: Sequence[str]) -> float:
    """Returns 1.0 if the generation up to its first "." or newline is an answer, else 0.0.

    The protocol of WILD (arXiv 2502.11177) for the question alone: greedy decoding of at most 50 tokens, ended by ".",
    a newline or the end token, compared after SQuAD's normalisation (case, punctuation and articles). The limit of 50
    tokens makes no difference here: a text longer than the answer does not match.

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
    """Mean of :func:`wild_match` of the generations in one of WILD's contexts.

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
    """Share of the generations in one of WILD's contexts that a judge finds correct."""

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        return self.answer(outcome).judged.get(self.context)


class RivalContainment(OutcomeMetric):
    """Mean of :func:`containment` of the probe's rival: how often the text contains the wrong answer.

    For a probe of the new fact, that is the old answer (KnowEdit's Sanitation: the answer to forget); for
    a probe of a neighbouring fact, the new target.
    """

    higher_is_better = False

    def value(self, outcome: EditOutcome) -> float | None:
        """See :meth:`OutcomeMetric.value`."""
        generation, rival = self.answer(outcome).generation, outcome.probe.rival
        return None if generation is None or rival is None else containment(generation, [rival])
