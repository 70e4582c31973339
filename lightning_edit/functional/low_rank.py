"""The layer of MEND's hypernetwork."""

from __future__ import annotations

from torch import Tensor


def low_rank_residual(x: Tensor, u: Tensor, v: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """One hidden layer of MEND: h' = h + max(0, s ⊙ (U V h + b) + o) (Mitchell et al. 2022, equation 3).

    U starts at zero, b and o at zero, s at one, so that the layer starts as the identity. The maximum is a clamp, whose
    gradient at zero is one: with a ReLU nothing would move off the start.

    Args:
        x: (N, D) inputs h.
        u: (D, R) factor U.
        v: (R, D) factor V.
        bias: (D) offset b, shared by the sites of one shape.
        scale: (D) or (N, D) per-site scale s.
        shift: (D) or (N, D) per-site shift o.

    Returns:
        (N, D).
    """
    return x + ((x @ v.T @ u.T + bias) * scale + shift).clamp(min=0)


def low_rank_gated(x: Tensor, u: Tensor, v: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """One block of MALMEN's network: h' = h + s ⊙ max(0, U V h + b) + o.

    It differs from :func:`low_rank_residual` in that scale and shift act behind the clamp, so that a block can also
    take away. Arguments and result are the same.
    """
    return x + (x @ v.T @ u.T + bias).clamp(min=0) * scale + shift
