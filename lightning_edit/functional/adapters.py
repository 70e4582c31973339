"""Factorisation of weight updates into low-rank adapters."""

from __future__ import annotations

import torch
from torch import Tensor


def compress(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compresses two factors to the rank of their product, most important column first.

    With a = Q₁R₁ and bᵀ = Q₂R₂, the singular value decomposition of the small matrix R₁R₂ᵀ gives that of ab.

    Args:
        a: (fan_in, rank).
        b: (rank, fan_out).

    Returns:
        Factors (fan_in, r) and (r, fan_out) float64 of the same product; their columns carry √σ each.
    """
    q1, r1 = torch.linalg.qr(a.double())
    q2, r2 = torch.linalg.qr(b.double().T)
    u, values, vt = torch.linalg.svd(r1 @ r2.T)
    return _numerical_rank(q1 @ u, values, vt @ q2.T)


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factorises a (fan_in, fan_out) matrix into (fan_in, r) and (r, fan_out) float64, most important column first."""
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return _numerical_rank(u, values, vt)


def _numerical_rank(u: Tensor, values: Tensor, vt: Tensor) -> tuple[Tensor, Tensor]:
    """Drops singular values of rounding size, and puts √σ on both factors, so that neither overflows."""
    limit = float(values[0]) * max(u.shape[0], vt.shape[1]) * torch.finfo(torch.float64).eps if len(values) else 0.0
    kept = max(int((values > limit).sum()), 1)
    root = values[:kept].clamp_min(0).sqrt()
    return u[:, :kept] * root, root[:, None] * vt[:kept]


def truncation_error(a: Tensor, rank: int) -> float:
    """Computes the relative Frobenius error of keeping the first ``rank`` columns of factors from this module.

    ‖ΔW - ΔW_r‖ / ‖ΔW‖ = √(Σ_{i>r} σ_i² / Σ σ_i²); a column of ``a`` has the norm √σ.
    """
    squared = a.double().pow(2).sum(0).pow(2)
    total = float(squared.sum())
    return (float(squared[rank:].sum()) / total) ** 0.5 if total else 0.0


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Truncates or zero-pads factors to ``rank`` columns, float32."""
    columns = min(a.shape[1], rank)
    wide_a, wide_b = a.new_zeros(a.shape[0], rank), b.new_zeros(rank, b.shape[1])
    wide_a[:, :columns], wide_b[:columns] = a[:, :columns], b[:columns]
    return wide_a.float(), wide_b.float()
