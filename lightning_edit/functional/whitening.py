"""Whitening of vectors along the principal directions of their second moment."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_whitening(moment: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The symmetric whitening W = (I + U diag(g) Uᵀ) diag(s) of the leading directions of a second moment C.

    With D² the diagonal of C and R = D⁻¹ C D⁻¹ its correlations, whose eigenvectors are U and whose eigenvalues λ, W is
    R̂^(-1/2) D⁻¹, where R̂ has the leading eigenvalues of R, and the mean f of the others in their place: few samples say
    little about those. So s = f^(-1/2) D⁻¹ and g = (f / λ)^(1/2) - 1.

    Args:
        moment: (M, M) second moment C.
        rank: Number of leading directions K < M.

    Returns:
        (M) s, (M, K) U with orthonormal columns, and (K) g, all float64.

    Raises:
        ValueError: If nothing is left beside the leading directions, whose mean the others take.
    """
    wide = moment.double()
    # A coordinate that is always zero stays as it is.
    deviation = wide.diagonal().sqrt()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    values, vectors = torch.linalg.eigh(wide / deviation[:, None] / deviation)
    leading = values[-rank:]
    floor = values[:-rank].mean()
    if not rank < len(values) or float(floor) < 1e-6:
        raise ValueError(f"the vectors span no more than {rank} directions")
    # No leading direction is stretched beyond the others.
    gains = (floor / leading.clamp(min=float(floor))).sqrt() - 1
    return floor.rsqrt() / deviation, vectors[:, -rank:], gains
