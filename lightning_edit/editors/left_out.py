"""Requests that no edit could be made for: they are left out, and the others are edited."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from lightning_edit.edits import Edit, Provenance
from lightning_edit.errors import EditError
from lightning_edit.records import EditRequest

_LEFT_OUT = "left out: "


def warn_of_left_out(problems: Sequence[str | None]) -> None:
    """Says how many requests are left out, and why each of them is.

    Args:
        problems: For each request what went wrong, if anything did.
    """
    found = [problem for problem in problems if problem is not None]
    if found:
        warnings.warn(f"{len(found)} of {len(problems)} requests are left out: {'; '.join(found)}", stacklevel=3)


def with_left_out(provenance: Provenance, problems: Sequence[str | None]) -> Provenance:
    """The provenance of an edit, with what went wrong with its requests among its warnings."""
    own = tuple(f"{_LEFT_OUT}{problem}" for problem in problems if problem is not None)
    return replace(provenance, warnings=(*provenance.warnings, *own))


def with_overruled(provenance: Provenance, asked: Sequence[EditRequest], kept: Sequence[EditRequest]) -> Provenance:
    """The provenance of an edit, with the requests that later ones overruled among its warnings."""
    left = set(kept)
    gone = [request for request in asked if request not in left]
    own = tuple(f"overruled by a later request: {request.id or request.prompt!r}" for request in gone)
    return replace(provenance, warnings=(*provenance.warnings, *own))


def refuse_empty(edit: Edit) -> Edit:
    """The edit, unless all of its requests were left out.

    Raises:
        EditError: If they were.
    """
    problems = [warning for warning in edit.provenance.warnings if warning.startswith(_LEFT_OUT)]
    if len(problems) == len(edit.provenance.requests):
        raise EditError(f"the edit could not be made; {problems[0]}")
    return edit
