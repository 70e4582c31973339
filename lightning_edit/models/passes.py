"""Forward passes of a language model: rows of a batch, contexts around a pass, and reused states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_edit.tokenization import EncodedText, TokenBatch

_PREFIX_SHARE = 4
"""A token whose keys and values are reused counts as this fraction of one that is run, for the size of batches."""


@dataclass(frozen=True)
class BatchRows:
    """The prompts of one padded batch, for edits that treat its rows differently.

    Args:
        indices: For each of R rows, the index of its prompt in the given list.
        prompt_ends: (R) int64 column of each prompt's last token in the padded batch.
        decoding: Whether the batch is being generated from. The prompts then end in the last column, and each later
            pass has one new column.
    """

    indices: list[int]
    prompt_ends: Tensor
    decoding: bool = False

    def after_prompt(self, length: int) -> Tensor:
        """Returns (R, length) bool: the columns from each prompt's last token on, in a pass of that length."""
        columns = torch.arange(length, device=self.prompt_ends.device)
        if self.decoding:
            return (columns == length - 1).expand(len(self.indices), -1)
        return columns >= self.prompt_ends[:, None]


BatchContext = Callable[[BatchRows], AbstractContextManager[object]]
"""Called with the rows of a padded batch; the context is active while the model runs on it."""


class ForwardPasses(Protocol):
    """Forward passes on a batch: full, or reusing what earlier passes computed."""

    def head_inputs(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        """See :meth:`LanguageModel.head_inputs`."""


class ReusedPrefix(ForwardPasses, Protocol):
    """Keys and values of tokens that all texts of a call begin with; see :mod:`lightning_edit.models.shared_prefix`."""

    def __len__(self) -> int:
        """Number of tokens."""

    def cache(self, rows: int) -> Any:
        """Returns keys and values for a batch, in a cache that can grow."""

    def continued(self, texts: Sequence[EncodedText]) -> tuple[Tensor, Tensor]:
        """Returns ids and attention mask (R, S) of whole texts, padded between prefix and suffix."""


def tokens_to_run(text: EncodedText, prefix: ReusedPrefix | None) -> int:
    """Returns the tokens that a text counts for in a batch; those of a prefix take memory, but hardly any time."""
    return len(text.ids) if prefix is None else len(text.ids) - len(prefix) + len(prefix) // _PREFIX_SHARE
