"""The loss of a scope classifier."""

from __future__ import annotations

from torch import Tensor


def log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p) for log p < 0, accurate at both ends."""
    bounded = log_p.clamp(max=-1e-6)
    complement: Tensor = (-bounded.expm1()).log()
    return complement


def scope_losses(log_p: Tensor, in_scope: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of pairs, in scope and out of scope (Mitchell et al. 2022, SERAC, equation 2).

    Args:
        log_p: (Q, M) log-probability that a prompt is in the scope of a remembered one.
        in_scope: (Q, M) bool: it is.
        counted: (Q, M) bool: pairs that are judged; out-of-scope pairs of equal prompts, say, are not.

    Returns:
        -log p of the P pairs in scope, and -log(1 - p) of the N others.
    """
    return -log_p[in_scope & counted], -log_complement(log_p[~in_scope & counted])
