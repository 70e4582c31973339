"""Shows a model's answers before and after an edit, and whether the edit succeeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_edit.edits import Edit, EditSequence
from lightning_edit.metrics.generation import containment
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.scoring import Score
from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class EditReport:
    """Whether an edit worked.

    Args:
        rows: Table rows: prompt, text before, text after, probabilities, success mark.
        failed: Requests whose target the edited model does not generate.
    """

    rows: list[list[str]]
    failed: list[EditRequest]


UNRELATED = "Water boils at"
"""Locality prompt that no edit should affect."""
_MAX_SHOWN = 8
"""Maximum number of requests shown."""


def edit_report(
    model: LanguageModel, edit: Edit, requests: Sequence[EditRequest], max_new_tokens: int = 12
) -> EditReport:
    """Compares a model's answers to requests and neighbourhood prompts before and after an edit.

    Args:
        model: The base model.
        edit: The edit.
        requests: Its requests.
        max_new_tokens: Maximum length of the texts.
    """
    neighbours = list(dict.fromkeys([*_neighbours(requests), UNRELATED]))
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    before = [_probability(score) for score in model.score(prompts, targets)]
    texts_before = model.generate([*prompts, *neighbours], max_new_tokens)
    with edit.applied(model) as edited:
        after = [_probability(score) for score in edited.score(prompts, targets)]
        texts_after = edited.generate([*prompts, *neighbours], max_new_tokens)
    works = [containment(text, [target]) > 0 for text, target in zip(texts_after, targets, strict=False)]
    rows = [
        [prompt, old, new, f"{p:.2f} → {q:.2f}", "✓" if worked else "✗"]
        for prompt, old, new, p, q, worked in zip(
            prompts, texts_before, texts_after, before, after, works, strict=False
        )
    ][:_MAX_SHOWN]
    for prompt, old, new in zip(neighbours, texts_before[len(prompts) :], texts_after[len(prompts) :], strict=True):
        rows.append([prompt, old, new, "", "unchanged" if old == new else "changed"])
    return EditReport(rows, [request for request, worked in zip(requests, works, strict=True) if not worked])


def _neighbours(requests: Sequence[EditRequest]) -> list[str]:
    """Returns the first request's prompt with another subject."""
    first = next((request for request in requests if request.subject_span is not None), None)
    if first is None or first.subject_span is None:
        return []
    start, end = first.subject_span
    other = "Japan" if "Japan" not in first.prompt else "Peru"
    return [first.prompt[:start] + other + first.prompt[end:]]


def _probability(score: Score) -> float:
    return math.exp(sum(score.log_probs) / max(len(score.log_probs), 1))


def show(model: LanguageModel, edit: Edit | EditSequence, prompts: Sequence[str], max_new_tokens: int) -> None:
    """Prints a table of the model's answers before and after an edit."""
    unique = list(dict.fromkeys(prompts))
    before = model.generate(unique, max_new_tokens)
    with edit.applied(model) as edited:
        after = edited.generate(unique, max_new_tokens)
    print_answers([list(row) for row in zip(unique, before, after, strict=True)], ["prompt", "before", "after"])


def print_answers(rows: Sequence[Sequence[str]], titles: Sequence[str], console: Console | None = None) -> None:
    """Prints texts as a table, without interpreting Rich markup.

    Args:
        rows: The texts.
        titles: Column headings.
        console: Where to print; standard output by default.
    """
    table = Table(show_lines=True)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(" ".join(text.split())) for text in row))
    (console or Console()).print(table)
