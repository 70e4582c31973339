"""Cards of exported or published edits, in the format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lightning_edit.edits.base import Edit

_SHOWN = 20


class DescribedBase(Protocol):
    """A base model as described in cards."""

    @property
    def name(self) -> str:
        """Hub id, path or bundled name."""

    @property
    def fingerprint(self) -> object:
        """Its identity, as text."""


def card(
    title: str,
    base: DescribedBase,
    licence: str | None,
    lines: Sequence[str],
    usage: str,
    measures: Mapping[str, Any] | None = None,
) -> str:
    """Builds a README in the Hub's format.

    Args:
        title: Title of the card.
        base: The base model.
        licence: Hub identifier of the licence; defaults to that of the base model.
        lines: Markdown lines about the content.
        usage: How to load it, in Markdown.
        measures: Measured values by name.
    """
    terms = f"Licence: {licence}." if licence else "The licence of the base model applies."
    parts = [
        "---",
        f"base_model: {base.name}",
        *([f"license: {licence}"] if licence else []),
        "library_name: transformers",
        "tags: [knowledge-editing, lightning_edit]",
        "---",
        f"# {title}",
        "",
        f"Base model: {base.name} [{base.fingerprint}]. {terms}",
        "",
        *lines,
        usage,
    ]
    if measures:
        parts += ["", "| measure | value |", "| --- | --- |"]
        parts += [f"| {_cell(name)} | {value:.4g} |" for name, value in measures.items()]
    return "\n".join(parts)


def model_card(title: str, edits: Sequence[Edit], usage: str, errors: Mapping[str, float] | None = None) -> str:
    """Builds the card of exported edits: what was edited, on which base model, by which method, and how to use it.

    Args:
        title: Title of the card.
        edits: The edits, oldest first.
        usage: How to load it, in Markdown.
        errors: Module name to the relative truncation error.
    """
    lines = edited_facts(edits)
    if errors is not None and max(errors.values(), default=0.0) > 0:
        lines += [f"Largest relative error of the low-rank form: {max(errors.values()):.2e} (Frobenius norm).", ""]
    return card(title, edits[-1].provenance.base, None, lines, usage)


def edited_facts(edits: Sequence[Edit]) -> list[str]:
    """Returns Markdown lines: a table of the edited facts, and the editors' notes."""
    requests = [(edit, request) for edit in edits for request in edit.provenance.requests]
    rows = [
        f"| {_cell(request.prompt)} | {_cell(request.ground_truth or '–')} | {_cell(request.target)} | "
        f"{edit.provenance.method} | {edit.id} |"
        for edit, request in requests[:_SHOWN]
    ]
    lines = ["| prompt | before | now | method | edit |", "| --- | --- | --- | --- | --- |", *rows, ""]
    if len(requests) > _SHOWN:
        lines += [f"… and {len(requests) - _SHOWN} more; see the edits.", ""]
    notes = [note for edit in edits for note in edit.provenance.notes]
    if notes:
        lines += ["Notes of the editor:", "", *(f"- {note}" for note in notes), ""]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
