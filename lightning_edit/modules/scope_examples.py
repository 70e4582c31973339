"""Prompts that a scope classifier is trained on beside the rephrases and locality prompts of the records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.records import EditRequest

_FORM_WORDS = re.compile(
    "a|an|and|are|at|be|been|by|did|do|does|for|from|had|has|have|how|in|is|it|its|of|on|or|s|that|the|their|there|this|"
    "to|was|were|what|when|where|which|who|whom|whose|will|with|would",
    re.IGNORECASE,
)
"""Words that say how something is asked, not what."""


@dataclass(frozen=True)
class ScopeExample:
    """A prompt, and the request that it is in the scope of.

    Args:
        prompt: The prompt.
        owner: Place of the request among those of the step; None where it is in the scope of none.
    """

    prompt: str
    owner: int | None = None


def subject_examples(memory: Sequence[EditRequest], places: Iterable[int]) -> list[ScopeExample]:
    """Prompts about the subjects of some of the requests, in scope and out of it.

    In scope is what a request asks, in the wordings of a search ("France capital", "The capital of France is"). Out of
    scope is what another request asks, about this one's subject, in its own words and in those of a search. The other
    one is the next in the order of the prompts whose words, the subject's aside, are for the most part others: with the
    same words it would be likely to ask for the same. The order does not depend on how requests are divided between
    processes. A request without a subject has no examples.

    Args:
        memory: All requests of the step.
        places: Places of the requests that are wanted.
    """
    order = sorted(range(len(memory)), key=lambda place: (memory[place].prompt, memory[place].target))
    examples: list[ScopeExample] = []
    for place in places:
        request, rank = memory[place], order.index(place)
        if request.subject is None or request.subject_span is None:
            continue
        examples += [ScopeExample(text, place) for text in _searches(request.subject, _asked(request))]
        following = (memory[index] for index in (*order[rank + 1 :], *order[:rank]))
        other = next((one for one in following if one.subject_span and _overlap(request, one) < 0.5), None)
        if other is not None and other.subject_span is not None:
            start, end = other.subject_span
            examples.append(ScopeExample(other.prompt[:start] + request.subject + other.prompt[end:]))
            examples += [ScopeExample(text) for text in _searches(request.subject, _asked(other))]
    return examples


def _searches(subject: str, asked: Sequence[str]) -> list[str]:
    words = " ".join(asked)
    return [f"{subject} {words}", f"The {words} of {subject} is"] if words else []


def _asked(request: EditRequest) -> list[str]:
    """The words of a prompt that say what is asked, without the subject."""
    start, end = request.subject_span or (0, 0)
    words = re.findall(r"\w+", f"{request.prompt[:start]} {request.prompt[end:]}")
    return [word for word in words if not _FORM_WORDS.fullmatch(word)]


def _overlap(first: EditRequest, second: EditRequest) -> float:
    """Share of the words that two prompts ask with that are in both."""
    one, other = ({word.lower() for word in _asked(request)} for request in (first, second))
    return len(one & other) / max(len(one | other), 1)


def judged_pairs(examples: Sequence[ScopeExample], memory: Sequence[EditRequest]) -> tuple[Tensor, Tensor]:
    """(Q, M) bool: the pairs of prompts and requests that are in scope, and those that are judged.

    The same prompt twice among the requests is neither in nor out of scope of the other one.
    """
    in_scope = torch.zeros(len(examples), len(memory), dtype=torch.bool)
    counted = torch.ones_like(in_scope)
    remembered = [request.prompt for request in memory]
    for row, example in enumerate(examples):
        asked = {example.prompt}
        if example.owner is not None:
            in_scope[row, example.owner] = True
            asked.add(remembered[example.owner])
        for place, text in enumerate(remembered):
            if text in asked and not in_scope[row, place]:
                counted[row, place] = False
    return in_scope, counted
