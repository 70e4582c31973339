"""Independent edits side by side in one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from lightning_edit.edits.base import Edit, Scorer
from lightning_edit.edits.provenance import Provenance
from lightning_edit.edits.rows import check_rows
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel


class Changes(ABC):
    """What B independent edits of one kind change; an editor computes it, and the base class adds the provenance."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of edits B."""

    @abstractmethod
    def edit(self, index: int, provenance: Provenance) -> Edit:
        """One of the edits, alone."""

    @abstractmethod
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> AbstractContextManager[Scorer]:
        """A context that yields what scores and generates with prompt r under edit ``rows[r]``."""


class EditBatch:
    """B independent edits, each with its own rows of a batch.

    Args:
        changes: What the edits change.
        provenances: Where each of them comes from.

    Raises:
        EditError: If their numbers differ.
    """

    def __init__(self, changes: Changes, provenances: Sequence[Provenance]) -> None:
        if len(changes) != len(provenances):
            raise EditError(f"{len(provenances)} edits, but changes for {len(changes)}")
        self.changes, self.provenances = changes, list(provenances)

    def __len__(self) -> int:
        return len(self.provenances)

    def __getitem__(self, index: int) -> Edit:
        """One of the edits, alone."""
        return self.changes.edit(index, self.provenances[index])

    @contextmanager
    def applied(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """A context that yields what scores and generates with prompt r under edit ``rows[r]``.

        Raises:
            BaseModelMismatchError: If the edits were made for another base model.
            EditError: If ``rows`` names an edit that does not exist, or one that is applied already.
        """
        check_rows(rows, len(self))
        for provenance in self.provenances[:1]:
            base = provenance.base
            model.check_base(base.fingerprint, "edit", base.name, base.chat_template)
        ids = [self.provenances[row].id for row in sorted(set(rows))]
        with model.marked_as_applied(ids), self.changes.layered(model, rows) as scorer:
            yield scorer
