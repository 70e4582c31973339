"""Changes of one edit site's weight, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
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

    def term(self, x: Tensor, output: Tensor) -> Tensor:
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

    def term(self, x: Tensor, output: Tensor) -> Tensor:
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


def add(first: Delta, second: Delta) -> Delta:
    """The sum of two changes of one site, on the first one's device.

    It stays factored while that is the cheaper form: applying rank r takes r (fan_in + fan_out) products for a token,
    a matrix fan_in · fan_out. Adding to a matrix costs the same however many changes it holds already.
    """
    second = second.to(_device(first))
    if isinstance(first, FactoredDelta) and isinstance(second, FactoredDelta):
        a, b = torch.cat([first.a, second.a], dim=1), torch.cat([first.b, second.b], dim=0)
        (fan_in, rank), fan_out = a.shape, b.shape[1]
        if rank * (fan_in + fan_out) <= fan_in * fan_out:
            return FactoredDelta(a, b)
    if isinstance(second, FactoredDelta):
        return DenseDelta(torch.addmm(first.dense(), second.a, second.b))
    return DenseDelta(first.dense() + second.dense())


def add_deltas(first: Mapping[str, Delta], second: Mapping[str, Delta]) -> dict[str, Delta]:
    """The sum of two sets of changes, site by site."""
    total = dict(first)
    for name, delta in second.items():
        total[name] = add(total[name], delta) if name in total else delta
    return total


def _device(delta: Delta) -> torch.device:
    return next(iter(delta.tensors().values())).device
