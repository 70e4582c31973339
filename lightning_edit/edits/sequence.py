"""Edits applied one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce

from lightning_edit.edits.base import Edit, Scorer
from lightning_edit.edits.deltas import Delta, combine
from lightning_edit.edits.hooks import added_terms
from lightning_edit.edits.weight import WeightEdit
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel


class EditSequence:
    """Edits in the order in which they were made.

    Weight edits at one site are folded into one change, factored or dense, whichever is cheaper. Edits with an explicit
    memory and the same classifier and counterfactual model are joined into one memory, in which a later request takes
    the place of an earlier one with its subject and prompt.

    Args:
        edits: The edits, oldest first.

    Raises:
        EditError: If two edits have the same id, or one depends on an edit that does not come before it.
    """

    def __init__(self, edits: Sequence[Edit] = ()) -> None:
        self.edits: tuple[Edit, ...] = tuple(edits)
        seen: set[str] = set()
        for edit in self.edits:
            if edit.id in seen:
                raise EditError(f"the edit {edit.id} is in the sequence twice")
            missing = [id for id in edit.provenance.depends_on if id not in seen]
            if missing:
                raise EditError(f"the edit {edit.id} was computed on top of {missing}, which must come before it")
            seen.add(edit.id)

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def ids(self) -> tuple[str, ...]:
        """The edits' ids, oldest first."""
        return tuple(edit.id for edit in self.edits)

    def then(self, edit: Edit) -> EditSequence:
        """The sequence with one more edit."""
        return EditSequence((*self.edits, edit))

    def without(self, id: str) -> EditSequence:
        """The sequence with one edit undone.

        Raises:
            EditError: If there is no such edit, or a later one was computed on top of it.
        """
        if id not in self.ids:
            raise EditError(f"no edit {id} in the sequence; it has {list(self.ids)}")
        dependent = [edit.id for edit in self.edits if id in edit.provenance.depends_on]
        if dependent:
            raise EditError(
                f"the edit {id} cannot be undone alone: {dependent} were computed on top of it; undo those first"
            )
        return EditSequence([edit for edit in self.edits if edit.id != id])

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[Scorer]:
        """A context in which all edits are applied; see :meth:`Edit.applied`."""
        weights = [edit for edit in self.edits if isinstance(edit, WeightEdit)]
        others = [edit for edit in self.edits if not isinstance(edit, WeightEdit)]
        for edit in weights:
            edit.check(model)
        folded = fold(weights, model)
        scorer: Scorer = model
        with ExitStack() as stack:
            stack.enter_context(added_terms(model, {name: delta.output for name, delta in folded.items()}))
            if others:
                scorer = stack.enter_context(reduce(lambda one, later: one.joined(later), others).applied(model))
            yield scorer

    def relative_norms(self, model: LanguageModel) -> dict[str, float]:
        """|ΔW| / |W| of every site that the edits change, in Frobenius norms."""
        folded = fold([edit for edit in self.edits if isinstance(edit, WeightEdit)], model)
        weights = {name: model.layer_map.named_site(name).weight.float().norm() for name in folded}
        return {name: float(delta.dense().norm()) / float(weights[name]) for name, delta in folded.items()}

    def merge(self, model: LanguageModel) -> None:
        """Writes all edits into the weights; see :meth:`Edit.merge`."""
        if self.edits:
            mergeable = [edit for edit in self.edits if isinstance(edit, WeightEdit)]
            for other in self.edits:
                if not isinstance(other, WeightEdit):
                    other.merge(model)
            WeightEdit(fold(mergeable, model), mergeable[0].provenance).merge(model)


def fold(edits: Sequence[WeightEdit], model: LanguageModel) -> dict[str, Delta]:
    """The sum of weight edits, site by site, where the sites' weights are."""
    deltas: dict[str, list[Delta]] = {}
    for edit in edits:
        for name, delta in edit.deltas.items():
            deltas.setdefault(name, []).append(delta.to(model.layer_map.named_site(name).weight.device))
    return {name: combine(own) for name, own in deltas.items()}
