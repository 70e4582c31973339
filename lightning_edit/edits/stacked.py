"""Stacked changes of one edit site for several independent edits, each on its own rows of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.edits.deltas import Delta, DenseDelta, FactoredDelta
from lightning_edit.edits.hooks import Term
from lightning_edit.edits.rows import split_rows


class StackedDelta(ABC):
    """Changes of one site for B edits."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of edits B."""

    @abstractmethod
    def __getitem__(self, index: int) -> Delta:
        """Returns the change of one edit."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the tensors."""

    @abstractmethod
    def norms(self) -> Tensor:
        """Computes the (B) Frobenius norm of each change."""

    @abstractmethod
    def are_finite(self) -> Tensor:
        """Returns (B) bool: whether all numbers of each change are finite."""

    @abstractmethod
    def without(self, edits: Collection[int]) -> StackedDelta:
        """Copies the changes, with those of some edits set to zero."""

    @abstractmethod
    def detach(self) -> StackedDelta:
        """Detaches the changes from the graph."""

    @abstractmethod
    def _output(self, x: Tensor, rows: Tensor) -> Tensor:
        """Computes the term for x (R, S, fan_in), whose row r belongs to edit ``rows[r]``."""

    def term(self, rows: Tensor, repeats: int = 1) -> Term:
        """Returns the term for a batch whose row r belongs to edit ``rows[r]``.

        Args:
            rows: (R) int64.
            repeats: Number of consecutive rows that a generation may make of one (beams).
        """
        count = len(rows)

        def added(x: Tensor, output: Tensor) -> Tensor:
            split = split_rows(x, count, repeats)
            edit_rows = rows if len(split) == count else rows.repeat_interleave(repeats)
            return self._output(split, edit_rows).reshape(*x.shape[:-1], -1)

        return added


@dataclass(frozen=True)
class StackedFactors(StackedDelta):
    """Factored changes: delta_i = a[i] @ b[i].

    Args:
        a: (B, fan_in, rank) float32; unused ranks are zero.
        b: (B, rank, fan_out) float32.
    """

    a: Tensor
    b: Tensor

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, index: int) -> FactoredDelta:
        return FactoredDelta(_contiguous_copy(self.a[index]), _contiguous_copy(self.b[index]))

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.a.device

    def norms(self) -> Tensor:
        """Computes (B) |A B|_F without the product, as the square root of tr(Bᵀ Aᵀ A B)."""
        return ((self.a.mT @ self.a) * (self.b @ self.b.mT)).sum((1, 2)).clamp(min=0).sqrt()

    def are_finite(self) -> Tensor:
        """See :meth:`StackedDelta.are_finite`."""
        return self.a.isfinite().all(dim=(1, 2)) & self.b.isfinite().all(dim=(1, 2))

    def without(self, edits: Collection[int]) -> StackedFactors:
        """See :meth:`StackedDelta.without`."""
        a, b = self.a.clone(), self.b.clone()
        a[list(edits)], b[list(edits)] = 0, 0
        return StackedFactors(a, b)

    def detach(self) -> StackedFactors:
        """Detaches the changes from the graph."""
        return StackedFactors(self.a.detach(), self.b.detach())

    def _output(self, x: Tensor, rows: Tensor) -> Tensor:
        wide = x.to(self.a.dtype)
        # With a device map, sites may be on several devices.
        a, b = self.a.to(x.device), self.b.to(x.device)
        if len(self) == 1:
            return wide @ a[0] @ b[0]
        rows = rows.to(x.device)
        return wide @ a[rows] @ b[rows]


@dataclass(frozen=True)
class StackedMatrices(StackedDelta):
    """Dense changes: delta_i = matrices[i].

    Args:
        matrices: (B, fan_in, fan_out) float32.
    """

    matrices: Tensor

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int) -> DenseDelta:
        return DenseDelta(_contiguous_copy(self.matrices[index]))

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.matrices.device

    def norms(self) -> Tensor:
        """Computes the (B) Frobenius norms."""
        norms: Tensor = self.matrices.flatten(1).norm(dim=1)
        return norms

    def are_finite(self) -> Tensor:
        """See :meth:`StackedDelta.are_finite`."""
        # Without a copy of all matrices as booleans.
        return torch.stack([matrix.isfinite().all() for matrix in self.matrices])

    def without(self, edits: Collection[int]) -> StackedMatrices:
        """See :meth:`StackedDelta.without`."""
        matrices = self.matrices.clone()
        matrices[list(edits)] = 0
        return StackedMatrices(matrices)

    def detach(self) -> StackedMatrices:
        """Detaches the changes from the graph."""
        return StackedMatrices(self.matrices.detach())

    def _output(self, x: Tensor, rows: Tensor) -> Tensor:
        wide = x.to(self.matrices.dtype)
        if len(self) == 1:
            return wide @ self.matrices[0].to(x.device)
        # One edit at a time, to avoid copying a dense change for every row.
        output, rows = wide.new_zeros(*wide.shape[:-1], self.matrices.shape[-1]), rows.to(x.device)
        for edit in rows.unique().tolist():
            output = output.index_put((rows == edit,), wide[rows == edit] @ self.matrices[edit].to(x.device))
        return output


def _contiguous_copy(values: Tensor) -> Tensor:
    """Copies with the strides of a tensor loaded from a file, so that products agree to the last bit."""
    copy: Tensor = torch.empty(values.shape, dtype=values.dtype, device=values.device)
    return copy.copy_(values)
