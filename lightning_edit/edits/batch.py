"""Batches of independent edits that share one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from lightning_edit.edits.base import Edit, Scorer
from lightning_edit.edits.provenance import Provenance
from lightning_edit.edits.rows import check_rows
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel


class Changes(ABC):
    """The changes of B independent edits of one kind, computed by an editor and still without provenance."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of edits B."""

    @abstractmethod
    def edit(self, index: int, provenance: Provenance) -> Edit:
        """Returns one of the edits."""

    @abstractmethod
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> AbstractContextManager[Scorer]:
        """Context manager that yields a scorer with prompt r under edit ``rows[r]``."""

    def non_finite(self) -> Mapping[int, str]:
        """Returns the edits with values that are not finite, each with the name of the first such site or value.

        By default none are looked for.
        """
        return {}

    def without(self, edits: Collection[int]) -> Changes:
        """Returns the changes with some of the edits changing nothing: those that failed, or are not finite.

        By default the changes as they are, for editors that leave failed requests out themselves.
        """
        return self


class EditBatch:
    """B independent edits, each with its own rows of a batch.

    Args:
        changes: Changes of the edits.
        provenances: Provenance of each edit.

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
        """Returns one of the edits."""
        return self.changes.edit(index, self.provenances[index])

    @contextmanager
    def applied(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """Context manager that yields a scorer with prompt r under edit ``rows[r]``.

        Raises:
            BaseModelMismatchError: If the edits were made for another base model.
            EditError: If ``rows`` names an edit that does not exist, or that is already applied.
        """
        check_rows(rows, len(self))
        for provenance in self.provenances[:1]:
            base = provenance.base
            model.check_base(base.fingerprint, "edit", base.name, base.chat_template)
        ids = [self.provenances[row].id for row in sorted(set(rows))]
        with model.marked_as_applied(ids), self.changes.layered(model, rows) as scorer:
            yield scorer
