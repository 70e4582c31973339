"""Hard examples for a scope classifier, in addition to the records' rephrases and locality prompts."""

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
"""Function words, which do not say what is asked."""


@dataclass(frozen=True)
class ScopeExample:
    """A prompt, and the request that it is in the scope of.

    Args:
        prompt: The prompt.
        owner: Index of the request among those of the step; None if it is in the scope of none.
    """

    prompt: str
    owner: int | None = None


def subject_examples(memory: Sequence[EditRequest], places: Iterable[int]) -> list[ScopeExample]:
    """Makes prompts about the subjects of requests, in scope and out of scope.

    In-scope prompts ask the request's question in search wordings ("France capital", "The capital of France is").
    Out-of-scope prompts ask another request's question about this subject, in its own and in search wordings. The other
    request is the next one, in the order of the prompts, that shares less than half of its words (without the subject),
    as it would otherwise be likely to ask the same. The order does not depend on how requests are divided between
    processes. A request without a subject has no examples.

    Args:
        memory: All requests of the step.
        places: Indices of the requests to make examples for.
    """
    order = sorted(range(len(memory)), key=lambda place: (memory[place].prompt, memory[place].target))
    examples: list[ScopeExample] = []
    for place in places:
        request, rank = memory[place], order.index(place)
        if request.subject is None or request.subject_span is None:
            continue
        examples += [ScopeExample(text, place) for text in _searches(request.subject, _content_words(request))]
        following = (memory[index] for index in (*order[rank + 1 :], *order[:rank]))
        other = next((one for one in following if one.subject_span and _overlap(request, one) < 0.5), None)
        if other is not None and other.subject_span is not None:
            start, end = other.subject_span
            examples.append(ScopeExample(other.prompt[:start] + request.subject + other.prompt[end:]))
            examples += [ScopeExample(text) for text in _searches(request.subject, _content_words(other))]
    return examples


def _searches(subject: str, asked: Sequence[str]) -> list[str]:
    words = " ".join(asked)
    return [f"{subject} {words}", f"The {words} of {subject} is"] if words else []


def _content_words(request: EditRequest) -> list[str]:
    """Returns the content words of a prompt, without the subject."""
    start, end = request.subject_span or (0, 0)
    words = re.findall(r"\w+", f"{request.prompt[:start]} {request.prompt[end:]}")
    return [word for word in words if not _FORM_WORDS.fullmatch(word)]


def _overlap(first: EditRequest, second: EditRequest) -> float:
    """Computes the overlap (Jaccard index) of two prompts' content words."""
    one, other = ({word.lower() for word in _content_words(request)} for request in (first, second))
    return len(one & other) / max(len(one | other), 1)


def judged_pairs(examples: Sequence[ScopeExample], memory: Sequence[EditRequest]) -> tuple[Tensor, Tensor]:
    """Returns (Q, M) bool masks of the pairs of prompts and requests in scope, and of those that count.

    Requests with the same prompt are neither in nor out of each other's scope.
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
