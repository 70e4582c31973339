"""Checks that a fast forward pass gives the same result as the full one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_edit.errors import LightningEditError

_TOLERANCE = 1e-3
"""Largest relative difference between a fast and the full pass that counts as rounding, in float32."""
_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors that unknown architectures raise if their blocks or cache are used in an unexpected way."""

_NOT_ENOUGH_MEMORY = "not enough memory"
"""Part of the message of the CPU allocator's error, which is a plain RuntimeError."""


_LENGTH_FACTOR = 2
"""A verified fast path holds for texts up to this many times as long."""


class FastPathRecord:
    """Record of the fast passes of a model that were compared with the full pass, so that each is compared once."""

    def __init__(self) -> None:
        self._lengths: dict[tuple[str, int], int] = {}
        self._details: dict[tuple[str, int], Any] = {}
        self._refused: dict[tuple[str, int], int] = {}

    def is_verified(self, path: str, layer: int, length: int) -> bool:
        """Whether a fast path from a layer on was verified for texts of a length in tokens."""
        return self._lengths.get((path, layer), 0) >= length

    def is_refused(self, path: str, layer: int, length: int) -> bool:
        """Whether a fast path from a layer on was found to differ for texts of this length or shorter ones."""
        refused = self._refused.get((path, layer))
        return refused is not None and length >= refused

    def verify(self, path: str, layer: int, length: int, details: Any = None) -> None:
        """Records that a fast path gave the same result on texts of a length, with what was learned about the model."""
        self._lengths[path, layer] = max(self._lengths.get((path, layer), 0), _LENGTH_FACTOR * length)
        self._details[path, layer] = details

    def refuse(self, path: str, layer: int, length: int) -> None:
        """Records that a fast path cannot be used for texts of a length and longer ones."""
        self._refused[path, layer] = min(length, self._refused.get((path, layer), length))

    def details(self, path: str, layer: int) -> Any:
        """Returns what was learned about the model when a fast path was verified."""
        return self._details[path, layer]

    def clear(self) -> None:
        """Forgets everything, because the weights changed."""
        for record in (self._lengths, self._details, self._refused):
            record.clear()


def finite_rows(full: Tensor) -> Tensor:
    """Returns (N) bool: which rows of (N, D) or (N) values are finite.

    Other rows are not compared: if the full pass fails, nothing can be said about the fast one.
    """
    return full.isfinite() if full.dim() == 1 else full.isfinite().all(-1)


def problem_of(fast: Callable[[], Tensor | None], full: Tensor | None, dtype: torch.dtype) -> str | None:
    """Returns why a fast pass cannot replace the full one, or None if it can.

    Args:
        fast: Runs the fast pass; returns (N, D), or (N) with one number per row.
        full: The result of the full pass; None to check only that the fast pass runs.
        dtype: Precision of the model; half precision gets a larger tolerance.

    Raises:
        torch.OutOfMemoryError: If the fast pass runs out of memory: the full one needs even more. On the CPU, a
            RuntimeError.
        LightningEditError: If the fast pass raises one, such as for an edit that does not fit its batch.
    """
    try:
        output = fast()
        return None if full is None or output is None else _difference(output, full, dtype)
    except (torch.OutOfMemoryError, LightningEditError):
        raise
    except _FAILURES as error:
        if _NOT_ENOUGH_MEMORY in str(error):
            raise
        return f"it fails with {type(error).__name__}: {error}"


def _difference(fast: Tensor, full: Tensor, dtype: torch.dtype) -> str | None:
    rows = finite_rows(full)
    fast, full = fast[rows], full[rows]
    relative = float((fast - full).norm() / full.norm().clamp(min=1e-12))
    allowed = max(_TOLERANCE, 8 * float(torch.finfo(dtype).eps))
    return None if relative <= allowed else f"relative difference of {relative:.1e} from the full forward pass"
