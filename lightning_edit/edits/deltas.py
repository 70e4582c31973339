"""Weight changes of one edit site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_edit.errors import EditError
from lightning_edit.functional.adapters import compress, decompose


@dataclass(frozen=True)
class FactoredDelta:
    """A low-rank change: delta = a @ b.

    Args:
        a: (fan_in, rank) float32.
        b: (rank, fan_out) float32.
    """

    is_low_rank: ClassVar[bool] = True
    a: Tensor
    b: Tensor

    def term(self, x: Tensor, output: Tensor) -> Tensor:
        """Computes the term added to the site's output: x (..., fan_in) to (..., fan_out)."""
        return x.to(self.a.dtype) @ self.a @ self.b

    def dense(self) -> Tensor:
        """Returns the change as one matrix (fan_in, fan_out)."""
        return self.a @ self.b

    def tensors(self) -> dict[str, Tensor]:
        """Returns the factors by name, for saving."""
        return {"a": self.a, "b": self.b}

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns factors (fan_in, r) and (r, fan_out) float64 of the smallest rank, most important column first."""
        return compress(self.a, self.b)

    def to(self, device: torch.device) -> FactoredDelta:
        """Moves the change to ``device``."""
        return FactoredDelta(self.a.to(device), self.b.to(device))


@dataclass(frozen=True)
class DenseDelta:
    """A dense change.

    Args:
        matrix: (fan_in, fan_out) float32.
    """

    is_low_rank: ClassVar[bool] = False
    matrix: Tensor

    def term(self, x: Tensor, output: Tensor) -> Tensor:
        """Computes the term added to the site's output: x (..., fan_in) to (..., fan_out)."""
        return x.to(self.matrix.dtype) @ self.matrix

    def dense(self) -> Tensor:
        """Returns the change as one matrix (fan_in, fan_out)."""
        return self.matrix

    def tensors(self) -> dict[str, Tensor]:
        """Returns the matrix by name, for saving."""
        return {"dense": self.matrix}

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns factors (fan_in, r) and (r, fan_out) float64 of the smallest rank, most important column first."""
        return decompose(self.matrix)

    def to(self, device: torch.device) -> DenseDelta:
        """Moves the change to ``device``."""
        return DenseDelta(self.matrix.to(device))


Delta = FactoredDelta | DenseDelta


def delta_from(tensors: dict[str, Tensor]) -> Delta:
    """Builds a change from its ``tensors()``."""
    if set(tensors) == {"a", "b"}:
        return FactoredDelta(tensors["a"], tensors["b"])
    if set(tensors) == {"dense"}:
        return DenseDelta(tensors["dense"])
    raise EditError(f"expected the tensors 'a' and 'b', or 'dense', found {sorted(tensors)}; is the file complete?")


def add(first: Delta, second: Delta) -> Delta:
    """Adds two changes of one site, on the first one's device.

    The sum stays factored while that is cheaper: rank r takes r (fan_in + fan_out) products per token, a dense matrix
    fan_in · fan_out.
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
    """Adds two sets of changes, site by site."""
    total = dict(first)
    for name, delta in second.items():
        total[name] = add(total[name], delta) if name in total else delta
    return total


def _device(delta: Delta) -> torch.device:
    return next(iter(delta.tensors().values())).device
