"""Assignment of batch rows to edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_edit.errors import EditError


def check_rows(rows: Sequence[int], edits: int) -> None:
    """Refuses rows that name nonexistent edits.

    Raises:
        EditError: If there are such rows.
    """
    if rows and not 0 <= min(rows) <= max(rows) < edits:
        raise EditError(f"rows refer to the edits {min(rows)} to {max(rows)}, but there are {edits}")


def check_prompts(prompts: Sequence[str], rows: Sequence[int]) -> None:
    """Refuses a number of prompts that differs from the number of rows.

    Raises:
        EditError: If the numbers differ.
    """
    if len(prompts) != len(rows):
        raise EditError(f"{len(prompts)} prompts, but the edits were applied to {len(rows)} rows")


def repeats_of(settings: Mapping[str, Any]) -> int:
    """Returns the number of consecutive rows that a generation makes of one prompt (beams)."""
    return int(settings.get("num_beams") or 1)


def split_rows(values: Tensor, count: int, repeats: int) -> Tensor:
    """Restores the shape (R, S, D) of values that some architectures flatten to (R · S, D).

    Args:
        values: (R, S, D) or (R · S, D), R being ``count`` or ``count * repeats``.
        count: Number of prompts.
        repeats: Number of rows that a generation may make of each.

    Raises:
        EditError: If the number of rows fits neither.
    """
    allowed = (count, count * repeats)
    if values.dim() == 3:
        if values.shape[0] in allowed:
            return values
        raise EditError(
            f"a batch of {values.shape[0]} rows reached edits that were applied to {count} rows; say which edit each "
            "row belongs to"
        )
    # In a generation with beams, every pass has repeats rows for each prompt.
    rows = count * repeats
    if values.shape[0] % rows == 0:
        return values.reshape(rows, -1, values.shape[-1])
    raise EditError(f"{values.shape[0]} flattened positions do not divide into {count} rows")
