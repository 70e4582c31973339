"""The check that a fast forward pass gives what the full one gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TOLERANCE = 1e-3
"""Largest relative difference between a fast and the full pass that counts as rounding, in float32."""
_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What an unknown architecture raises where its blocks or its cache are used otherwise than it expects."""


def finite_rows(full: Tensor) -> Tensor:
    """(N) bool: the rows of (N, D) or (N) values that are finite.

    The others are not compared: a text whose full pass breaks says nothing about the fast one.
    """
    return full.isfinite() if full.dim() == 1 else full.isfinite().all(-1)


def problem_of(fast: Callable[[], Tensor | None], full: Tensor | None, dtype: torch.dtype) -> str | None:
    """Why a fast pass cannot take the place of the full one; None where it can.

    Args:
        fast: Runs the fast pass; (N, D), or (N) where each row gives one number.
        full: The same of the full pass; None where it is known to be equal, and the fast pass could only fail.
        dtype: Precision in which the model computes: half precision rounds more coarsely.

    Raises:
        torch.OutOfMemoryError: If there is no memory for the fast pass: the full one needs more still.
    """
    try:
        output = fast()
        return None if full is None or output is None else _difference(output, full, dtype)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        return f"it fails with {type(error).__name__}: {error}"


def _difference(fast: Tensor, full: Tensor, dtype: torch.dtype) -> str | None:
    rows = finite_rows(full)
    fast, full = fast[rows], full[rows]
    relative = float((fast - full).norm() / full.norm().clamp(min=1e-12))
    allowed = max(_TOLERANCE, 8 * float(torch.finfo(dtype).eps))
    return None if relative <= allowed else f"relative difference of {relative:.1e} from the full forward pass"
