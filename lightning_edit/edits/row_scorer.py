"""Scores and generates with terms at edit sites that differ between the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.edits.rows import check_prompts, repeats_of
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchContext, BatchRows, ForwardPasses
from lightning_edit.models.scoring import Score

RowTerms = Callable[[Sequence[int], BatchRows, int], Mapping[str, Term]]
"""Maps the owner of each row of a batch, the rows, and the number of rows that beams make of one, to terms by site."""


class RowScorer:
    """Scores and generates with each prompt under its own change: an edit of a batch, or an item of a memory.

    Args:
        model: The model.
        owners: The edit or item of each prompt.
        terms: Builds the terms of a batch.
    """

    def __init__(self, model: LanguageModel, owners: Sequence[int], terms: RowTerms) -> None:
        self._model, self._owners, self._terms = model, list(owners), terms

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
        passes: ForwardPasses | None = None,
    ) -> list[Score]:
        """See :meth:`LanguageModel.score`.

        Raises:
            EditError: If the number of prompts differs from that of the owners.
        """
        check_prompts(prompts, self._owners)
        return self._model.score(prompts, targets, references, keep_head_input, passes, self._around(1))

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        """See :meth:`LanguageModel.generate`.

        Raises:
            EditError: If the number of prompts differs from that of the owners.
        """
        check_prompts(prompts, self._owners)
        return self._model.generate(prompts, max_new_tokens, around=self._around(repeats_of(settings)), **settings)

    def _around(self, repeats: int) -> BatchContext:
        def around(batch: BatchRows) -> AbstractContextManager[None]:
            owners = [self._owners[index] for index in batch.indices]
            return added_terms(self._model, self._terms(owners, batch, repeats))

        return around
