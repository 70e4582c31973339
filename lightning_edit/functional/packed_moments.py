"""Second moments in half precision: a quarter of the size, and still positive definite."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_moment(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Packs a second moment C as its scales and the Cholesky factor of its correlations.

    C = D R D with D² the diagonal of C, and R = L Lᵀ. The rows of L have length 1, so half precision rounds each of
    them to about 5e-4 of its length, at any scale, and the rounded L̃ L̃ᵀ is positive definite by construction;
    rounding C itself would drown its small eigenvalues.

    Args:
        moment: (M, M) symmetric positive definite.

    Returns:
        (M) float32 diagonal of D, and (M (M + 1) / 2) float16 lower triangle of L, row by row.

    Raises:
        ValueError: If the moment is not positive definite.
    """
    wide = moment.double()
    scale = wide.diagonal().sqrt()
    factor, failed = torch.linalg.cholesky_ex(wide / scale[:, None] / scale)
    if failed or not bool(factor.isfinite().all()):
        raise ValueError("the moment is not positive definite")
    rows, columns = torch.tril_indices(*moment.shape, device=moment.device)
    return scale.float(), factor[rows, columns].half()


def unpack_moment(scale: Tensor, triangle: Tensor) -> Tensor:
    """Unpacks a moment packed by :func:`pack_moment`.

    Args:
        scale: (M).
        triangle: (M (M + 1) / 2).

    Returns:
        (M, M) float32.

    Raises:
        ValueError: If the two do not belong together.
    """
    size = len(scale)
    if triangle.shape != (size * (size + 1) // 2,):
        raise ValueError(f"a triangle of {triangle.numel()} entries does not belong to {size} scales")
    factor = torch.zeros(size, size, device=scale.device)
    rows, columns = torch.tril_indices(size, size, device=scale.device)
    factor[rows, columns] = triangle.float()
    factor *= scale[:, None]
    return factor @ factor.T
