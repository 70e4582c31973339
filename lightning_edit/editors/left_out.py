"""Requests that no edit could be made for: they are left out, and the others are edited."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from lightning_edit.edits import Edit, Provenance
from lightning_edit.errors import EditError


def warn_of_left_out(problems: Sequence[str | None]) -> None:
    """Says how many requests are left out, and why the first of them is.

    Args:
        problems: For each request what went wrong, if anything did.
    """
    found = [problem for problem in problems if problem is not None]
    if found:
        warnings.warn(f"{len(found)} of {len(problems)} requests are left out: {found[0]}", stacklevel=3)


def with_left_out(provenance: Provenance, problems: Sequence[str | None]) -> Provenance:
    """The provenance of an edit, with what went wrong with its requests among its warnings."""
    return replace(provenance, warnings=tuple(f"left out: {problem}" for problem in problems if problem is not None))


def refuse_empty(edit: Edit) -> Edit:
    """The edit, unless all of its requests were left out.

    Raises:
        EditError: If they were.
    """
    problems = edit.provenance.warnings
    if len(problems) == len(edit.provenance.requests):
        raise EditError(f"the edit could not be made; {problems[0]}")
    return edit
