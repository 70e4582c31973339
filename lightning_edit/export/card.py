"""Model cards of what is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_edit.edits.base import Edit

_SHOWN = 20


def model_card(title: str, edits: Sequence[Edit], usage: str, errors: Mapping[str, float] | None = None) -> str:
    """A README in the Hub's form: what was edited, on which base model, by which method, and how to use it.

    Args:
        title: What it is.
        edits: The edits, oldest first.
        usage: How to load it, in Markdown.
        errors: Module name to the relative error of what was cut off.
    """
    base = edits[-1].provenance.base
    requests = [(edit, request) for edit in edits for request in edit.provenance.requests]
    rows = [
        f"| {_cell(request.prompt)} | {_cell(request.ground_truth or '–')} | {_cell(request.target)} | "
        f"{edit.provenance.method} | {edit.id} |"
        for edit, request in requests[:_SHOWN]
    ]
    more = [f"\n… and {len(requests) - _SHOWN} more; see edits.json.\n"] if len(requests) > _SHOWN else []
    notes = [note for edit in edits for note in edit.provenance.notes]
    lines = [
        "---",
        f"base_model: {base.name}",
        "library_name: transformers",
        "tags: [knowledge-editing, lightning_edit]",
        "---",
        f"# {title}",
        "",
        f"Base model: {base.name} [{base.fingerprint}]. The licence of the base model applies.",
        "",
        "| prompt | before | now | method | edit |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        *more,
        "",
        usage,
    ]
    if errors is not None and max(errors.values(), default=0.0) > 0:
        lines += [f"Largest relative error of the low-rank form: {max(errors.values()):.2e} (Frobenius norm).", ""]
    if notes:
        lines += ["Notes of the editor:", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
