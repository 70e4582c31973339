"""Divergence of two models' predictions."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(p_before || p_after) at each position, the locality loss of MEND (Mitchell et al. 2022, equation 4b).

    sum_v p(v) (log p(v) - log q(v)) with p = softmax(before), q = softmax(after).

    Args:
        before: (..., V) logits of the unedited model.
        after: (..., V) logits of the edited model, same shape.

    Returns:
        (...) divergences in nats.
    """
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
