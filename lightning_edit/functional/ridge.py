"""The regularised normal equation of MALMEN, and the backward pass through its solution."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def factorize(gram: Tensor, ridge: Tensor) -> Tensor:
    """Computes the Cholesky factor of G + λ I in float64.

    Args:
        gram: (..., M, M) symmetric, positive semidefinite G.
        ridge: () λ > 0.
    """
    identity = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    factor: Tensor = torch.linalg.cholesky(gram.double() + ridge.double() * identity)
    return factor


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """Solves for the right-hand side in float64 and rounds to its dtype.

    Args:
        factor: (..., M, M) Cholesky factor.
        right: (..., M, N).
    """
    return torch.cholesky_solve(right.double(), factor).to(right.dtype)


class DualRidge:
    """B solutions S_b = K_bᵀ A_b with A_b = (K_b K_bᵀ + λI)⁻¹ D_b, for edits with fewer keys than fan-in.

    By the push-through identity this is (KᵀK + λI)⁻¹ Kᵀ D, the solution of MALMEN's normal equation (Tan et al. 2024,
    equation 4), in factored form, from a system as large as the number of keys.

    Args:
        keys: (B, T, fan_in) keys K, padded with zero rows.
        ridge: () λ.
    """

    def __init__(self, keys: Tensor, ridge: Tensor) -> None:
        wide = keys.double()
        self.factor = factorize(wide @ wide.mT, ridge)

    def solution(self, values: Tensor) -> Tensor:
        """Returns (B, T, fan_out) A for value differences D of the same shape."""
        return solve(self.factor, values)

    def gradients(self, solution: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, T, fan_out) ∂L/∂D = M⁻¹ ∂L/∂A, and () ∂L/∂λ = -<∂L/∂D, A>."""
        values = solve(self.factor, gradient)
        return values, -(values.double() * solution.double()).sum()


class PrimalRidge:
    """B solutions S_b = (K_bᵀK_b + λI)⁻¹ K_bᵀ D_b, accumulated chunk by chunk, for edits with many keys.

    Args:
        chunks: Yields (keys (N, fan_in), values (N, fan_out), group (N) int64) of every chunk.
        edits: Number of edits B.
        ridge: () λ.
        sizes: Fan-in and fan-out.
    """

    def __init__(
        self, chunks: Iterable[tuple[Tensor, Tensor, Tensor]], edits: int, ridge: Tensor, sizes: tuple[int, int]
    ) -> None:
        fan_in, fan_out = sizes
        gram = torch.zeros(edits, fan_in, fan_in, dtype=torch.float64, device=ridge.device)
        right = torch.zeros(edits, fan_in, fan_out, dtype=torch.float64, device=ridge.device)
        dtype = ridge.dtype
        for keys, values, group in chunks:
            for edit in group.unique().tolist():
                members = keys[group == edit].double()
                gram[edit] += members.T @ members
                right[edit] += members.T @ values[group == edit].double()
        self.factor = factorize(gram, ridge)
        self.solution = solve(self.factor, right).to(dtype)

    def gradients(self, gradient: Tensor) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
        """Returns ∂L/∂D for the keys of any chunk, as a function of (keys, group), and () ∂L/∂λ.

        With Z = M⁻¹ ∂L/∂S: ∂L/∂D = K Z and ∂L/∂λ = -<Z, S> (Tan et al. 2024, section 3.3).
        """
        solved = solve(self.factor, gradient.double())

        def of_values(keys: Tensor, group: Tensor) -> Tensor:
            values = keys.new_empty(len(keys), solved.shape[-1])
            for edit in group.unique().tolist():
                values[group == edit] = (keys[group == edit].double() @ solved[edit]).to(keys.dtype)
            return values

        return of_values, -(solved * self.solution.double()).sum()
