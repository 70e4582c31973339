"""Checks that a fast forward pass gives the same result as the full one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TOLERANCE = 1e-3
"""Largest relative difference between a fast and the full pass that counts as rounding, in float32."""
_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors that unknown architectures raise if their blocks or cache are used in an unexpected way."""


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
        torch.OutOfMemoryError: If the fast pass runs out of memory: the full one needs even more.
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
