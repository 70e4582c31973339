"""Contradictory requests: the same prompt with different targets in one edit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from lightning_edit.errors import EditError
from lightning_edit.records import EditRequest

Contradictions = Literal["error", "last", "keep"]


def overruled(group: Sequence[EditRequest]) -> list[EditRequest]:
    """Returns the requests whose prompt has another target in a later request of the same edit."""
    last = {request.prompt: request.target for request in group}
    return [request for request in group if last[request.prompt] != request.target]


def report_contradictions(group: Sequence[EditRequest], choice: Contradictions) -> None:
    """Warns about contradictory requests of an edit, and how they are handled, before the work starts.

    Raises:
        EditError: If requests contradict one another and the choice is "error".
    """
    kept, contradictions = without_contradictions(group, choice), overruled(group)
    if contradictions:
        done = "all are tried" if choice == "keep" else f"the last ones win, and {len(group) - len(kept)} are left out"
        names = ", ".join(repr(request.id or request.prompt) for request in contradictions)
        warnings.warn(
            f"{len(contradictions)} requests contradict later ones of the same edit ({names}); {done} "
            "(editor.contradictions)",
            stacklevel=4,
        )


def without_contradictions(group: Sequence[EditRequest], choice: Contradictions) -> list[EditRequest]:
    """Resolves contradictory requests of an edit.

    Args:
        group: The requests.
        choice: "last" keeps the last of the contradictory requests of a prompt, "keep" keeps all, "error" refuses.

    Raises:
        EditError: If requests contradict one another and the choice is "error".
    """
    last = {request.prompt: place for place, request in enumerate(group)}
    contradicting = overruled(group)
    if not contradicting or choice == "keep":
        return list(group)
    if choice == "last":
        prompts = {request.prompt for request in contradicting}
        return [
            request
            for place, request in enumerate(group)
            if request.prompt not in prompts or place == last[request.prompt]
        ]
    first = contradicting[0]
    raise EditError(
        f"{len(contradicting)} requests contradict later ones of the same edit, the first of them "
        f"{first.id or first.prompt!r}: {first.prompt!r} is to be answered {first.target!r} and "
        f"{group[last[first.prompt]].target!r}; set contradictions to last or keep, or edit them apart"
    )
