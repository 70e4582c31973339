"""The loss of a scope classifier."""

from __future__ import annotations

from torch import Tensor


def log_complement(log_p: Tensor) -> Tensor:
    """Computes log(1 - p) from log p < 0, accurate at both ends."""
    bounded = log_p.clamp(max=-1e-6)
    complement: Tensor = (-bounded.expm1()).log()
    return complement


def scope_losses(log_p: Tensor, in_scope: Tensor, counted: Tensor, hardest: bool = False) -> tuple[Tensor, Tensor]:
    """Computes the binary cross-entropy of pairs in and out of scope (Mitchell et al. 2022, SERAC, equation 2).

    Args:
        log_p: (Q, M) log-probability that a prompt is in the scope of a remembered one.
        in_scope: (Q, M) bool: whether it is.
        counted: (Q, M) bool: pairs to include; out-of-scope pairs of equal prompts, for example, are excluded.
        hardest: Of the pairs out of scope, use only the most probable one of each prompt.

    Returns:
        -log p of the P pairs in scope, and -log(1 - p) of the N others, or of one per prompt that has any.
    """
    positive, others = -log_p[in_scope & counted], ~in_scope & counted
    if not hardest:
        return positive, -log_complement(log_p[others])
    losses = (-log_complement(log_p)).masked_fill(~others, 0.0).amax(1)
    return positive, losses[others.any(1)]
