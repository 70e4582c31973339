"""Storage of gradient factors in memory or on disk, read back in chunks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_edit.models.capture import GradientFactors


@dataclass(frozen=True)
class FactorChunk:
    """Some of the factors of one site.

    Args:
        x: (N, fan_in) inputs of the site.
        delta: (N, fan_out) gradients with respect to its output.
        group: (N) int64 edit of each row.
    """

    x: Tensor
    delta: Tensor
    group: Tensor


class FactorStore:
    """The gradient factors of B edits, site by site.

    Args:
        edits: Number of edits B.
        on_disk: Keep the factors in memory-mapped files of a temporary folder, which is deleted with the store. They
            are read onto the model's device each time they are used.
    """

    def __init__(self, edits: int, on_disk: bool = False) -> None:
        self.edits = edits
        self._folder = tempfile.TemporaryDirectory(prefix="lightning-edit-factors-") if on_disk else None
        self._x: dict[str, list[Tensor]] = {}
        self._delta: dict[str, list[Tensor]] = {}
        self._group: dict[str, list[Tensor]] = {}

    @classmethod
    def of(cls, factors: Mapping[str, GradientFactors], edit_of_row: Tensor, edits: int) -> FactorStore:
        """Creates a store of one batch; see :meth:`append`."""
        store = cls(edits)
        store.append(factors, edit_of_row)
        return store

    def append(self, factors: Mapping[str, GradientFactors], edit_of_row: Tensor) -> None:
        """Adds the factors of a batch.

        Args:
            factors: Gradient factors of R rows, by site name.
            edit_of_row: (R) int64 edit of each row.
        """
        for site, one in factors.items():
            self._group.setdefault(site, []).append(edit_of_row[one.rows])
            self._x.setdefault(site, []).append(self._keep(one.x, f"{len(self._group[site])}-x", site))
            self._delta.setdefault(site, []).append(self._keep(one.delta, f"{len(self._group[site])}-delta", site))

    def _keep(self, values: Tensor, name: str, site: str) -> Tensor:
        if self._folder is None or not values.numel():
            return values
        path = Path(self._folder.name) / f"{site}-{name}"
        array = values.cpu().numpy()
        array.tofile(path)
        return torch.from_numpy(np.memmap(path, dtype=array.dtype, mode="r+", shape=array.shape))

    @property
    def sites(self) -> list[str]:
        """Names of the sites."""
        return list(self._group)

    def rows(self, site: str) -> int:
        """Returns the number of factors at a site."""
        return sum(map(len, self._group[site]))

    def most_rows(self, site: str) -> int:
        """Returns the largest number of factors of one edit at a site."""
        return int(torch.bincount(torch.cat(self._group[site]), minlength=self.edits).max())

    def sizes(self, site: str) -> tuple[int, int]:
        """Returns fan-in and fan-out of a site."""
        return self._x[site][0].shape[1], self._delta[site][0].shape[1]

    def chunks(self, site: str, size: int) -> Iterator[FactorChunk]:
        """Yields the factors of a site, at most ``size`` at a time, in order of insertion."""
        return (read() for read in self.readers(site, size))

    def readers(self, site: str, size: int) -> Iterator[Callable[[], FactorChunk]]:
        """Yields a function for each of the :meth:`chunks` that reads it on every call."""
        for batch, group in enumerate(self._group[site]):
            for start in range(0, len(group), size):
                yield partial(self._read, site, batch, slice(start, start + size))

    def _read(self, site: str, batch: int, rows: slice) -> FactorChunk:
        group = self._group[site][batch][rows]
        x, delta = (batches[site][batch][rows].to(group.device) for batches in (self._x, self._delta))
        return FactorChunk(x, delta, group)

    def whole(self, site: str) -> FactorChunk:
        """Returns all factors of a site."""
        parts = [self._read(site, batch, slice(None)) for batch in range(len(self._group[site]))]
        return FactorChunk(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "delta", "group")))
