"""Edits that change weights at edit sites."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.edits.base import TENSORS, Edit, Scorer, read_tensors
from lightning_edit.edits.batch import Changes
from lightning_edit.edits.deltas import Delta, add_deltas, delta_from
from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.edits.provenance import Provenance
from lightning_edit.edits.row_scorer import RowScorer
from lightning_edit.edits.stacked import StackedDelta
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchRows

_DELTAS = "deltas/"


class WeightEdit(Edit):
    """A weight change of some edit sites: W' = W + ΔW, with ΔW factored or dense.

    When applied, it adds x ΔW to the output of each site, which is equal up to rounding and leaves the weights as is.

    Args:
        deltas: ΔW by name of the edit site; always (fan_in, fan_out), for any orientation of the module.
        provenance: Where the edit comes from.
        state: See :class:`Edit`.
    """

    kind = "weight"

    def __init__(
        self, deltas: Mapping[str, Delta], provenance: Provenance, state: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(provenance, state)
        self.deltas = dict(deltas)

    @contextmanager
    def layered(self, below: Scorer, model: LanguageModel) -> Iterator[Scorer]:
        """See :meth:`Edit.layered`; edits the model itself, and thereby any scorer on top of it."""
        terms = {name: delta.to(_device(model, name)).term for name, delta in self.deltas.items()}
        with added_terms(model, terms):
            yield below

    def joined(self, later: Edit) -> Edit | None:
        """See :meth:`Edit.joined`: the changes of weight edits add up, site by site."""
        if not isinstance(later, WeightEdit):
            return None
        return WeightEdit(add_deltas(self.deltas, later.deltas), later.provenance)

    def weight_deltas(self) -> Mapping[str, Delta]:
        """See :meth:`Edit.weight_deltas`."""
        return self.deltas

    def write(self, folder: Path) -> dict[str, Any]:
        """See :meth:`Edit.write`."""
        tensors = {
            f"{_DELTAS}{site}/{name}": tensor
            for site, delta in self.deltas.items()
            for name, tensor in delta.tensors().items()
        }
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / TENSORS)
        return {"sites": list(self.deltas)}

    @classmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> WeightEdit:
        """See :meth:`Edit.read`."""
        tensors = read_tensors(folder / TENSORS)
        deltas = {site: delta_from(with_prefix(tensors, f"{_DELTAS}{site}/")) for site in details["sites"]}
        return cls(deltas, provenance)


class WeightChanges(Changes):
    """Weight changes of B independent edits.

    Args:
        stacked: Changes of all edits, by name of the edit site.
        states: For each edit, see :class:`Edit`.

    Raises:
        EditError: If the sites have changes for different numbers of edits.
    """

    def __init__(
        self, stacked: Mapping[str, StackedDelta], states: Sequence[Mapping[str, Tensor]] | None = None
    ) -> None:
        self.stacked = dict(stacked)
        sizes = {len(changes) for changes in self.stacked.values()}
        if len(sizes) != 1:
            raise EditError(f"the sites have changes for {sorted(sizes)} edits; expected one number for all")
        self.states = list(states) if states is not None else [{} for _ in range(len(self))]

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values())))

    def edit(self, index: int, provenance: Provenance) -> WeightEdit:
        """See :meth:`Changes.edit`."""
        deltas = {name: changes[index] for name, changes in self.stacked.items()}
        return WeightEdit(deltas, provenance, self.states[index])

    def non_finite(self) -> dict[int, str]:
        """See :meth:`Changes.non_finite`."""
        broken: dict[int, str] = {}
        for site, changes in self.stacked.items():
            for edit in (~changes.are_finite()).nonzero()[:, 0].tolist():
                broken.setdefault(edit, site)
        return broken

    def without(self, edits: Collection[int]) -> WeightChanges:
        """See :meth:`Changes.without`."""
        states = [{} if edit in edits else state for edit, state in enumerate(self.states)]
        return WeightChanges({site: changes.without(edits) for site, changes in self.stacked.items()}, states)

    def terms(self, rows: Sequence[int], batch: BatchRows, repeats: int = 1) -> dict[str, Term]:
        """Returns the terms, by site name, of a batch whose row r belongs to edit ``rows[r]``.

        Args:
            rows: (R) edit of each row.
            batch: The rows.
            repeats: Number of consecutive rows that a generation may make of one (beams).
        """
        return {
            name: changes.term(torch.tensor(list(rows), device=changes.device), repeats)
            for name, changes in self.stacked.items()
        }

    @contextmanager
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """See :meth:`Changes.layered`."""
        yield RowScorer(model, rows, self.terms)


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Selects the tensors whose names begin with a prefix, and strips it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _device(model: LanguageModel, name: str) -> torch.device:
    return model.layer_map.named_site(name).weight.device
