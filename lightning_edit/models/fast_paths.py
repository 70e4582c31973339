"""The check that a fast forward pass gives what the full one gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TOLERANCE = 1e-3
"""Largest relative difference between a fast and the full pass that counts as rounding, in float32."""
_FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What an unknown architecture raises where its blocks or its cache are used otherwise than it expects."""


def difference(fast: Tensor, full: Tensor) -> str | None:
    """How what a fast pass gives differs from what the full pass gives; None where it is rounding.

    Args:
        fast: (N, D), or (N) where each row gives one number.
        full: The same of the full pass. Rows that are not finite are passed over: a text whose full pass breaks says
            nothing about the others.
    """
    finite = full.isfinite() if full.dim() == 1 else full.isfinite().all(-1)
    fast, full = fast[finite], full[finite]
    relative = float((fast - full).norm() / full.norm().clamp(min=1e-12))
    # Half precision rounds more coarsely than the tolerance that float32 allows.
    allowed = max(_TOLERANCE, 8 * float(torch.finfo(fast.dtype).eps))
    return None if relative <= allowed else f"relative difference of {relative:.1e} from the full forward pass"


def problem_of(fast: Callable[[], Tensor], full: Tensor) -> str | None:
    """Why a fast pass cannot take the place of the full one; None where it can.

    Args:
        fast: Runs the fast pass.
        full: What the full pass gives; see :func:`difference`.

    Raises:
        torch.OutOfMemoryError: If there is no memory for the fast pass: the full one needs more still.
    """
    try:
        output = fast()
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        return f"it fails with {type(error).__name__}: {error}"
    return difference(output, full)
