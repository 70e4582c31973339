"""Independent edits side by side in one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_edit.edits.base import Edit, Provenance, Scorer
from lightning_edit.edits.hooks import added_terms
from lightning_edit.edits.stacked import StackedDelta
from lightning_edit.edits.weight import WeightEdit
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel, Score


class EditBatch(ABC):
    """B independent edits, each with its own rows of a batch.

    Args:
        provenances: One for each edit.
    """

    def __init__(self, provenances: Sequence[Provenance]) -> None:
        self.provenances = list(provenances)

    def __len__(self) -> int:
        return len(self.provenances)

    @abstractmethod
    def __getitem__(self, index: int) -> Edit:
        """One of the edits, alone."""

    @abstractmethod
    def applied(self, model: LanguageModel, rows: Sequence[int]) -> AbstractContextManager[Scorer]:
        """A context that yields what scores and generates with prompt r under edit ``rows[r]``.

        Raises:
            BaseModelMismatchError: If the edits were made for another base model.
        """

    def check(self, model: LanguageModel) -> None:
        """Refuses another base model."""
        for provenance in self.provenances[:1]:
            model.check_base(provenance.fingerprint, "edit", provenance.base_name)


class WeightEditBatch(EditBatch):
    """Independent changes of the weights.

    Args:
        stacked: Name of the edit site to the changes of all edits.
        provenances: One for each edit.
        keys: For each edit, see :class:`WeightEdit`.
    """

    def __init__(
        self,
        stacked: Mapping[str, StackedDelta],
        provenances: Sequence[Provenance],
        keys: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        super().__init__(provenances)
        self.stacked = dict(stacked)
        self.keys = list(keys) or [{} for _ in provenances]
        sizes = {len(changes) for changes in self.stacked.values()}
        if sizes != {len(self.provenances)}:
            raise EditError(f"{len(self.provenances)} edits, but changes for {sorted(sizes)}")

    def __getitem__(self, index: int) -> WeightEdit:
        """One of the edits, alone."""
        deltas = {name: changes[index] for name, changes in self.stacked.items()}
        return WeightEdit(deltas, self.provenances[index], self.keys[index])

    @contextmanager
    def hooked(self, model: LanguageModel, rows: Sequence[int], repeats: int = 1) -> Iterator[None]:
        """Edits one forward pass whose row r belongs to edit ``rows[r]``; any other batch size is an error."""
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise EditError(f"rows name the edits {min(rows)} to {max(rows)}, but there are {len(self)}")
        terms = {}
        for name, changes in self.stacked.items():
            terms[name] = changes.term(torch.tensor(list(rows), device=changes.device), repeats)
        with added_terms(model, terms):
            yield

    @contextmanager
    def applied(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """See :meth:`EditBatch.applied`."""
        self.check(model)
        yield _SideBySide(model, self, list(rows))


class _SideBySide:
    """Scores and generates with each prompt under its own edit."""

    def __init__(self, model: LanguageModel, edits: WeightEditBatch, rows: list[int]) -> None:
        self._model, self._edits, self._rows = model, edits, rows

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
    ) -> list[Score]:
        self._check(prompts)
        return self._model.score(prompts, targets, references, keep_head_input, around=self._around(1))

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        self._check(prompts)
        repeats = int(settings.get("num_beams") or 1) * int(settings.get("num_return_sequences") or 1)
        return self._model.generate(prompts, max_new_tokens, around=self._around(repeats), **settings)

    def _around(self, repeats: int) -> Any:
        return lambda chunk: self._edits.hooked(self._model, [self._rows[index] for index in chunk], repeats)

    def _check(self, prompts: Sequence[str]) -> None:
        if len(prompts) != len(self._rows):
            raise EditError(f"{len(prompts)} prompts, but the edits were applied to {len(self._rows)} rows")
