"""Whitening of vectors along the principal directions of their second moment."""

from __future__ import annotations

import torch
from torch import Tensor


def principal_whitening(moment: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the symmetric whitening W = (I + U diag(g) Uᵀ) diag(s) of a second moment C's leading directions.

    Let D² be the diagonal of C, and R = D⁻¹ C D⁻¹ its correlations, with eigenvectors U and eigenvalues λ. Then
    W = R̂^(-1/2) D⁻¹, where R̂ keeps the leading eigenvalues of R and replaces the others, which few samples determine
    poorly, by their mean f. So s = f^(-1/2) D⁻¹ and g = (f / λ)^(1/2) - 1.

    Args:
        moment: (M, M) second moment C.
        rank: Number of leading directions K < M.

    Returns:
        (M) s, (M, K) U with orthonormal columns, and (K) g, all float64.

    Raises:
        ValueError: If the vectors span no more than the leading directions.
    """
    wide = moment.double()
    # A coordinate that is always zero is not scaled.
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
