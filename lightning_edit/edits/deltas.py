"""Changes of one edit site's weight, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.errors import EditError


@dataclass(frozen=True)
class FactoredDelta:
    """A change of low rank: delta = a @ b.

    Args:
        a: (fan_in, rank) float32.
        b: (rank, fan_out) float32.
    """

    a: Tensor
    b: Tensor

    def output(self, x: Tensor) -> Tensor:
        """What the change adds to the site's output: x (..., fan_in) to (..., fan_out)."""
        return x.to(self.a.dtype) @ self.a @ self.b

    def dense(self) -> Tensor:
        """The change as one matrix (fan_in, fan_out)."""
        return self.a @ self.b

    def tensors(self) -> dict[str, Tensor]:
        """The factors by name, for saving."""
        return {"a": self.a, "b": self.b}

    def to(self, device: torch.device) -> FactoredDelta:
        """The same change on ``device``."""
        return FactoredDelta(self.a.to(device), self.b.to(device))


@dataclass(frozen=True)
class DenseDelta:
    """A change as one matrix.

    Args:
        matrix: (fan_in, fan_out) float32.
    """

    matrix: Tensor

    def output(self, x: Tensor) -> Tensor:
        """What the change adds to the site's output: x (..., fan_in) to (..., fan_out)."""
        return x.to(self.matrix.dtype) @ self.matrix

    def dense(self) -> Tensor:
        """The change as one matrix (fan_in, fan_out)."""
        return self.matrix

    def tensors(self) -> dict[str, Tensor]:
        """The matrix by name, for saving."""
        return {"dense": self.matrix}

    def to(self, device: torch.device) -> DenseDelta:
        """The same change on ``device``."""
        return DenseDelta(self.matrix.to(device))


Delta = FactoredDelta | DenseDelta


def delta_from(tensors: dict[str, Tensor]) -> Delta:
    """The inverse of ``tensors()``."""
    if set(tensors) == {"a", "b"}:
        return FactoredDelta(tensors["a"], tensors["b"])
    if set(tensors) == {"dense"}:
        return DenseDelta(tensors["dense"])
    raise EditError(f"expected the tensors 'a' and 'b', or 'dense', found {sorted(tensors)}; is the file complete?")


def combine(deltas: list[Delta]) -> Delta:
    """The sum of changes: factored while that is the cheaper form, dense once the rank makes the factors dearer."""
    if len(deltas) == 1:
        return deltas[0]
    factored = [delta for delta in deltas if isinstance(delta, FactoredDelta)]
    if len(factored) == len(deltas):
        a = torch.cat([delta.a for delta in factored], dim=1)
        b = torch.cat([delta.b for delta in factored], dim=0)
        (fan_in, rank), fan_out = a.shape, b.shape[1]
        if rank * (fan_in + fan_out) <= fan_in * fan_out:
            return FactoredDelta(a, b)
    total = torch.zeros_like(deltas[0].dense())
    for delta in deltas:
        total += delta.dense()
    return DenseDelta(total)
