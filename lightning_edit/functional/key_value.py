"""Factored float64 updates of a linear layer viewed as a key-value memory."""

from __future__ import annotations

import torch
from torch import Tensor


def constrained_update(
    keys: Tensor, weighted: Tensor, denominators: Tensor | None = None, ridge: float = 0.0
) -> Tensor:
    """Left factor A of an update A Rᵀ that stores values exactly: (W + RAᵀ) k = W k + r.

    With C the second moment of the layer's keys, the update of least C-weighted norm is R D⁻¹ KᵀC⁻¹ with D = KᵀC⁻¹K
    (EMMET: Gupta et al. 2024, arXiv 2403.14236, equation 9). For one key this is ROME's update
    r (C⁻¹k)ᵀ / (kᵀC⁻¹k) (Meng et al. 2022, arXiv 2202.05262, equation 2).

    Args:
        keys: (M, N) keys K, one column per request.
        weighted: (M, N) C⁻¹K.
        denominators: (M, N) keys for which the constraint holds; K by default. The original implementation of ROME
            uses another key here than in C⁻¹k.
        ridge: Added to the diagonal of D.

    Returns:
        (M, N) A = C⁻¹K D⁻¹.
    """
    held = keys if denominators is None else denominators
    system = held.T @ weighted + ridge * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    solved: Tensor = torch.linalg.solve(system.T, weighted.T)
    return solved.T


def least_squares_update(keys: Tensor, weighted: Tensor) -> Tensor:
    """Left factor A of MEMIT's update A Rᵀ: A = (λC + KKᵀ)⁻¹K (Meng et al. 2023, arXiv 2210.07229, equation 14).

    By the matrix inversion lemma A = (λC)⁻¹K (I + Kᵀ(λC)⁻¹K)⁻¹, a system as large as the number of requests.

    Args:
        keys: (M, N) keys K, one column per request.
        weighted: (M, N) (λC)⁻¹K.

    Returns:
        (M, N).
    """
    identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    solved: Tensor = torch.linalg.solve((identity + keys.T @ weighted).T, weighted.T)
    return solved.T


def null_space(moment: Tensor, threshold: float) -> Tensor:
    """Computes an (M, R) orthonormal basis of a second moment's eigenvectors with eigenvalues below a threshold.

    P = U Uᵀ projects onto the null space of preserved knowledge (AlphaEdit: Fang et al. 2025, arXiv 2410.02355,
    equation 7).

    Args:
        moment: (M, M) symmetric, positive semidefinite.
        threshold: The largest eigenvalue that counts as zero (exclusive).
    """
    values, vectors = torch.linalg.eigh(moment.double())
    basis: Tensor = vectors[:, values < threshold].contiguous()
    return basis


def null_space_update(keys: Tensor, basis: Tensor, earlier: Tensor | None, ridge: float) -> Tensor:
    """Left factor A of AlphaEdit's update A Rᵀ: A = (P(KKᵀ + EEᵀ) + L₂I)⁻¹ P K (equation 13).

    In the basis U of the null space it is U G⁻¹ Q (I + QᵀG⁻¹Q)⁻¹ with Q = UᵀK and G = Uᵀ EEᵀ U + L₂I. Without
    earlier edits G is L₂I, and the system is as large as the number of requests.

    Args:
        keys: (M, N) keys K, one column per request.
        basis: (M, R) orthonormal basis U of the null space.
        earlier: (M, M) EEᵀ of the keys of earlier edits, which the update preserves; None without any.
        ridge: L₂.

    Returns:
        (M, N).
    """
    projected = basis.T @ keys
    if earlier is None:
        weighted = projected / ridge
    else:
        system = basis.T @ earlier.to(basis) @ basis
        system.diagonal().add_(ridge)
        weighted = torch.cholesky_solve(projected, torch.linalg.cholesky(system))
    update: Tensor = basis @ least_squares_update(projected, weighted)
    return update
