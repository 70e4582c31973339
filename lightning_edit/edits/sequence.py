"""Sequences of edits, applied one after another."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_edit.edits.base import Edit, Scorer
from lightning_edit.edits.deltas import Delta, add_deltas
from lightning_edit.edits.writing import write_deltas
from lightning_edit.errors import BaseModelMismatchError, EditError
from lightning_edit.models.fingerprint import Likeness
from lightning_edit.models.language_model import LanguageModel


class _Ids(Collection[str]):
    """The first ids of a table that longer sequences share, so that one more edit copies nothing.

    Args:
        positions: Position of each id.
        length: How many of them belong to this sequence.
    """

    def __init__(self, positions: Mapping[str, int], length: int) -> None:
        self._positions, self._length = positions, length

    def __contains__(self, id: object) -> bool:
        return self._positions.get(id, self._length) < self._length if isinstance(id, str) else False

    def __iter__(self) -> Iterator[str]:
        return itertools.islice(self._positions, self._length)

    def __len__(self) -> int:
        return self._length


class EditSequence:
    """Edits in the order in which they were made.

    Consecutive edits are joined where possible (:meth:`Edit.joined`), and the state that editors need of earlier edits
    is accumulated, so that the cost of one more edit does not grow with the length of the sequence.

    Args:
        edits: The edits, oldest first.

    Raises:
        BaseModelMismatchError: If the edits were made for different base models.
        EditError: If two edits have the same id, or one depends on an edit that is not before it.

    Example:
        >>> from lightning_edit import EditRequest, GradientStep
        >>> facts = [EditRequest(f"The capital of {name} is", target="Rome", id=name) for name in ("France", "Japan")]
        >>> edits = [GradientStep(sites=[-1]).edit(model, [fact]) for fact in facts]
        >>> sequence = EditSequence(edits)
        >>> len(sequence), len(sequence.without(edits[0].id))
        (2, 1)
    """

    def __init__(self, edits: Sequence[Edit] = ()) -> None:
        # Shared with longer sequences, which append to them; of the edits, the first ones are this sequence's.
        self._shared: list[Edit] = []
        self._positions: dict[str, int] = {}
        self._length = 0
        self.layers: tuple[Edit, ...] = ()
        """The edits after joining, lowest first."""
        self.state: dict[str, Tensor] = {}
        """(M, M) float64 Σ rowsᵀ rows over the states of all edits, by name; see :class:`Edit`."""
        self._frontier: dict[str, None] = {}
        self._model_frontier: dict[str, None] = {}
        for edit in edits:
            self._add(edit)

    def __len__(self) -> int:
        return self._length

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits, oldest first."""
        return tuple(itertools.islice(self._shared, self._length))

    @property
    def ids(self) -> tuple[str, ...]:
        """The edits' ids, oldest first."""
        return tuple(self._ids)

    @property
    def _ids(self) -> _Ids:
        return _Ids(self._positions, self._length)

    @property
    def frontier(self) -> tuple[str, ...]:
        """The ids of the edits that no other one depends on; a later edit depends on the others through them."""
        return tuple(self._frontier)

    @property
    def model_frontier(self) -> tuple[str, ...]:
        """Like :attr:`frontier`, of the edits that change the model itself (:attr:`Edit.changes_model`)."""
        return tuple(self._model_frontier)

    def then(self, edit: Edit) -> EditSequence:
        """Returns the sequence with one more edit."""
        longer = EditSequence()
        longer._shared, longer._positions, longer._length = self._shared, self._positions, self._length
        if len(self._shared) > self._length:
            # Another sequence has already continued this one.
            longer._shared = list(self.edits)
            longer._positions = dict(itertools.islice(self._positions.items(), self._length))
        longer.layers, longer.state, longer._frontier = self.layers, dict(self.state), dict(self._frontier)
        longer._model_frontier = dict(self._model_frontier)
        longer._add(edit)
        return longer

    def _add(self, edit: Edit) -> None:
        if edit.id in self._ids:
            raise EditError(f"the edit {edit.id} is in the sequence twice")
        missing = [id for id in edit.provenance.depends_on if id not in self._ids]
        if missing:
            raise EditError(f"the edit {edit.id} was computed on top of {missing}, which must come before it")
        self._check_base(edit)
        joined = self.layers[-1].joined(edit) if self.layers else None
        self.layers = (*self.layers, edit) if joined is None else (*self.layers[:-1], joined)
        self._shared.append(edit)
        self._positions[edit.id] = self._length
        self._length += 1
        for id in edit.provenance.depends_on:
            self._frontier.pop(id, None)
        self._frontier[edit.id] = None
        if edit.changes_model:
            for id in edit.provenance.depends_on:
                self._model_frontier.pop(id, None)
            self._model_frontier[edit.id] = None
        for name, rows in edit.state.items():
            earlier = self.state.get(name)
            wide = rows.double() if earlier is None else rows.to(earlier)
            self.state[name] = wide.T @ wide if earlier is None else torch.addmm(earlier, wide.T, wide)

    def _check_base(self, edit: Edit) -> None:
        if not self._length:
            return
        mine, base = self._shared[self._length - 1].provenance.base, edit.provenance.base
        if base.fingerprint.compare(mine.fingerprint) is Likeness.DIFFERENT:
            raise BaseModelMismatchError(
                f"the edit {edit.id} was made for {base.name} [{base.fingerprint}], but the edits before it for "
                f"{mine.name} [{mine.fingerprint}]; a sequence is applied to one base model"
            )

    def without(self, id: str) -> EditSequence:
        """Returns the sequence with one edit undone.

        Raises:
            EditError: If there is no such edit, or a later one was computed on top of it.
        """
        if id not in self._ids:
            raise EditError(f"no edit {id} in the sequence; it has {list(self.ids)}")
        dependent = [edit.id for edit in self.edits if id in edit.provenance.depends_on]
        if dependent:
            raise EditError(
                f"the edit {id} cannot be undone alone: {dependent} were computed on top of it; undo those first"
            )
        return EditSequence([edit for edit in self.edits if edit.id != id])

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[Scorer]:
        """Context manager that applies all edits; see :meth:`Edit.applied`."""
        for layer in self.layers:
            layer.check(model)
        scorer: Scorer = model
        with ExitStack() as stack:
            stack.enter_context(model.marked_as_applied(self._ids))
            for layer in self.layers:
                scorer = stack.enter_context(layer.layered(scorer, model))
            yield scorer

    def weight_deltas(self) -> dict[str, Delta]:
        """Sums the edits' weight changes, by site name."""
        total: dict[str, Delta] = {}
        for layer in self.layers:
            total = add_deltas(total, layer.weight_deltas())
        return total

    def relative_norms(self, model: LanguageModel) -> dict[str, float]:
        """Computes |ΔW| / |W| of every changed site, in Frobenius norms."""
        deltas = self.weight_deltas()
        weights = {name: model.layer_map.named_site(name).weight.float().norm() for name in deltas}
        return {name: float(delta.dense().norm()) / float(weights[name]) for name, delta in deltas.items()}

    def to_peft(
        self, model: LanguageModel, folder: str | Path, rank: int | None = None, max_error: float = 0.01
    ) -> Path:
        """Saves all edits as one LoRA adapter; see :func:`lightning_edit.export.adapter_of`."""
        from lightning_edit.export import adapter_of, save_adapter

        return save_adapter(adapter_of(self, model, rank, max_error), folder)

    def merge(self, model: LanguageModel) -> None:
        """Writes all edits into the weights; see :meth:`Edit.merge`."""
        for edit in self.edits:
            edit.check_mergeable()
        for layer in self.layers:
            layer.check(model)
        deltas: Mapping[str, Delta] = self.weight_deltas()
        if deltas:
            write_deltas(model, deltas)

    def as_hf(self, model: LanguageModel) -> PreTrainedModel:
        """Wraps the edited model as a transformers model, whose generate and forward apply the edits.

        See :class:`lightning_edit.export.transformers_model.EditedCausalLM`.
        """
        from lightning_edit.export.transformers_model import EditedCausalLM

        return EditedCausalLM(self, model)
