"""The layer of MEND's hypernetwork."""

from __future__ import annotations

from torch import Tensor


def low_rank_residual(x: Tensor, u: Tensor, v: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """One hidden layer of MEND: h' = h + max(0, s ⊙ (U V h + b) + o) (Mitchell et al. 2022, equation 3).

    U, b and o start at zero and s at one, so that the layer starts as the identity. The maximum is a clamp, whose
    gradient at zero is one; a ReLU could not leave the starting point.

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

    Unlike in :func:`low_rank_residual`, scale and shift act after the clamp, so that a block can also subtract.
    Arguments and result are the same.
    """
    return x + (x @ v.T @ u.T + bias).clamp(min=0) * scale + shift
