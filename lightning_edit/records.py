"""Data classes for edits and their evaluation: requests, probes, records and outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

from lightning_edit.errors import RequestError
from lightning_edit.words import find_words, has_lone_surrogate

Span = tuple[int, int]
WildContext = Literal["question", "instruction", "chat"]
"""Prompt contexts of WILD (Yang et al. 2025, arXiv 2502.11177)."""
WILD_CONTEXTS: tuple[WildContext, ...] = get_args(WildContext)


class ProbeKind(StrEnum):
    """What a probe tests, in the terms of KnowEdit (Zhang et al. 2024, arXiv 2401.01286, section 4)."""

    EDIT_SUCCESS = "edit_success"
    GENERALIZATION = "generalization"
    PORTABILITY = "portability"
    LOCALITY = "locality"
    FLUENCY = "fluency"
    SENTIMENT = "sentiment"

    def __str__(self) -> str:
        return self.value


def find_subject(prompt: str, subject: str) -> Span:
    """Finds the characters of ``subject`` in ``prompt``.

    Only whole words count (Unicode Standard Annex #29): "Art" is not found in "Artist", nor "Jos" in "José"; see
    :func:`lightning_edit.words.find_words`. Of several occurrences, the last is returned, because its hidden states
    have seen the others.

    Args:
        prompt: The text to search.
        subject: The text to find, without white space around it.

    Returns:
        The start and end (exclusive) of the occurrence, in characters.

    Raises:
        RequestError: If there is no such occurrence.

    Example:
        >>> find_subject("The capital of France is", "France")
        (15, 21)
    """
    occurrences = find_words(prompt, subject)
    if occurrences:
        return occurrences[-1]
    if subject in prompt:
        raise RequestError(
            f"the subject {subject!r} occurs only inside another word of the prompt {prompt!r}; "
            "give the subject as it stands in the prompt, as whole words"
        )
    raise RequestError(
        f"the subject {subject!r} is not in the prompt {prompt!r}; "
        "give the subject exactly as it stands in the prompt, or none"
    )


@dataclass(frozen=True)
class EditRequest:
    """A request to edit a model: after ``prompt`` it should continue with ``target``.

    White space around the target and after the prompt is stripped; the tokenisation decides whether a space joins
    the two.

    Args:
        prompt: Input of the model.
        target: Answer that the edited model should give.
        subject: The entity that the fact is about, as it stands in the prompt. Some editors need it.
        ground_truth: The answer before the edit, if known. The probability comparison of ROME (Meng et al. 2022,
            arXiv 2202.05262) needs it.
        subject_start: Position of the subject's first character in the prompt, if known. By default it is found with
            :func:`find_subject`.
        id: Name of the request, used in messages and to undo the edit.

    Raises:
        RequestError: If the prompt or the target is empty or blank, or the subject is given and not in the prompt.
    """

    prompt: str
    target: str
    subject: str | None = None
    ground_truth: str | None = None
    subject_start: int | None = None
    id: str = ""

    def __post_init__(self) -> None:
        for name in ("prompt", "target", "subject", "ground_truth"):
            value = getattr(self, name)
            if value is not None and has_lone_surrogate(value):
                raise RequestError(
                    f"the {name} {value!a} of the edit request {self.id!r} holds half of a surrogate pair, which is no "
                    "character; was it decoded as something other than UTF-8?"
                )
            if name in ("prompt", "target") and not value.strip():
                raise RequestError(f"the {name} of the edit request {self.id!r} is empty; give a text")
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        object.__setattr__(self, "target", self.target.strip())
        if self.subject is None:
            return
        if not self.subject.strip():
            raise RequestError(f"the subject of the edit request {self.id!r} is empty; give a text, or none")
        object.__setattr__(self, "subject", self.subject.strip())
        self._check_subject()

    def _check_subject(self) -> None:
        start = self.subject_start
        if start is None:
            find_subject(self.prompt, self.subject or "")
        elif not self.prompt.startswith(self.subject or "", start):
            raise RequestError(f"the subject {self.subject!r} does not start at character {start} of {self.prompt!r}")

    @property
    def subject_span(self) -> Span | None:
        """The characters of the subject in the prompt (start, end), or None without a subject."""
        if self.subject is None:
            return None
        if self.subject_start is not None:
            return self.subject_start, self.subject_start + len(self.subject)
        return find_subject(self.prompt, self.subject)


@dataclass(frozen=True)
class Probe:
    """A test prompt for an edited model, with its acceptable answers.

    Args:
        prompt: Input of the model.
        answers: The correct objects, each a tuple of its aliases. Teacher-forced measures score the first alias of the
            first object; free generation is compared with all of them.
        kind: What the probe tests.
        group: Subgroup of the kind, such as "Reasoning"; empty for none.
        rival: The answer that competes with the first one in the probability comparison: the old object for a probe
            of the new fact, the new target for a probe of a neighbouring fact.
        references: Texts that a free continuation is compared with (consistency).
        opposites: Texts of the opposite sentiment, for a sentiment probe, whose answers have the wanted one.

    Raises:
        RequestError: If the prompt is blank, a probe other than of fluency has no answer, or a sentiment probe has no
            opposites.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]
    kind: ProbeKind
    group: str = ""
    rival: str | None = None
    references: tuple[str, ...] = ()
    opposites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise RequestError(f"a {self.kind} probe has an empty prompt; give a text")
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        stripped = tuple(tuple(alias.strip() for alias in aliases if alias.strip()) for aliases in self.answers)
        object.__setattr__(self, "answers", tuple(aliases for aliases in stripped if aliases))
        if not self.answers and self.kind is not ProbeKind.FLUENCY:
            raise RequestError(f"the {self.kind} probe {self.prompt!r} has no answer; give at least one")
        object.__setattr__(self, "opposites", tuple(text.strip() for text in self.opposites if text.strip()))
        if self.kind is ProbeKind.SENTIMENT and not self.opposites:
            raise RequestError(f"the sentiment probe {self.prompt!r} has no texts of the opposite sentiment; give some")

    @property
    def answer(self) -> str:
        """The answer that teacher-forced measures score; empty for a fluency probe."""
        return self.answers[0][0] if self.answers else ""

    @property
    def aliases(self) -> tuple[str, ...]:
        """All acceptable answers, of all objects."""
        return tuple(alias for aliases in self.answers for alias in aliases)


@dataclass(frozen=True)
class EditRecord:
    """One or several requests that belong together, and the probes that test them.

    Most benchmarks have one request per record; MQuAKE has several.

    Args:
        id: Name of the record, unique in its data set.
        requests: The edits to make.
        probes: Test prompts for the edited model, in addition to the requests.

    Raises:
        RequestError: If there is no request.
    """

    id: str
    requests: tuple[EditRequest, ...]
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        if not self.requests:
            raise RequestError(f"the record {self.id!r} has no edit request")

    def probes_of(self, kind: ProbeKind) -> tuple[Probe, ...]:
        """Returns the probes of one kind, in the record's order."""
        return tuple(probe for probe in self.probes if probe.kind is kind)

    @property
    def all_probes(self) -> tuple[Probe, ...]:
        """The requests themselves as edit-success probes, then the record's own probes."""
        return tuple(success_probe(request) for request in self.requests) + self.probes


def success_probe(request: EditRequest) -> Probe:
    """Returns the edit-success probe of a request."""
    return Probe(
        prompt=request.prompt,
        answers=((request.target,),),
        kind=ProbeKind.EDIT_SUCCESS,
        rival=request.ground_truth if request.ground_truth != request.target else None,
    )


def group_names(records: Sequence[EditRecord]) -> list[tuple[ProbeKind, str]]:
    """Returns the sorted pairs of kind and group in ``records``; the same on every process."""
    names = {(probe.kind, probe.group) for record in records for probe in record.all_probes}
    return sorted(names, key=lambda pair: (pair[0].value, pair[1]))


@dataclass(frozen=True)
class Answer:
    """A model's answer to one probe.

    Args:
        predicted_ids: The most probable token at each position of the answer, given the answer's earlier tokens.
        log_probs: Natural logarithm of the probability of each token of the answer, given the earlier ones.
        rival_log_probs: The same for the tokens of the probe's rival; empty without a rival.
        generation: Free generation (greedy decoding) after the prompt; None if it was skipped.
        in_context: Free generation after the prompt in each context (WILD).
        judged: Judge's score of the generation in each context: 1 if right, 0 if wrong.
        wanted_log_probs: Like ``log_probs``, for all answers of a sentiment probe, concatenated.
        opposite_log_probs: The same for its opposites.
    """

    predicted_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    rival_log_probs: tuple[float, ...] = ()
    generation: str | None = None
    in_context: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, float] = field(default_factory=dict)
    wanted_log_probs: tuple[float, ...] = ()
    opposite_log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Route:
    """A router's decision whether a remembered edit answers a prompt.

    Args:
        score: How close the prompt is to the closest remembered item, in the router's own measure (for SERAC, the
            probability of being in its scope). 0 for an empty memory.
        hit: Whether that item answers.
        requests: The requests of that item.
        is_probability: Whether the score is the probability of being in the item's scope.
    """

    score: float
    hit: bool
    requests: tuple[EditRequest, ...] = ()
    is_probability: bool = False

    @property
    def request(self) -> EditRequest | None:
        """The first of the item's requests."""
        return self.requests[0] if self.requests else None


@dataclass(frozen=True)
class EditOutcome:
    """Input of the metrics: one probe, and the model's answers before and after the edit.

    Args:
        record_id: The record that the probe belongs to.
        probe: The probe.
        target_ids: Token ids of the probe's first answer.
        before: Answer of the unedited model.
        after: Answer of the edited model.
        divergence: KL(before || after) in nats, averaged over the answer's positions; None if it was not measured.
        route: Decision of a routed edit; None for other edits.
        right_request: Whether the closest item holds a request of the probe's record.
    """

    record_id: str
    probe: Probe
    target_ids: tuple[int, ...]
    before: Answer
    after: Answer
    divergence: float | None = None
    route: Route | None = None
    right_request: bool | None = None
