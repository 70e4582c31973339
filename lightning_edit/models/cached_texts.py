"""Caches hidden states below a block, for methods that run the blocks above many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.trunk import Trunk
from lightning_edit.tokenization import EncodedText, TokenBatch, similar_lengths


@dataclass(frozen=True)
class TextBatch:
    """A batch of texts, padded to the right.

    Args:
        tokens: R rows of S tokens.
        states: (R, S, hidden size) input of the lowest block to run; None if the full pass is used.
    """

    tokens: TokenBatch
    states: Tensor | None


class CachedTexts:
    """Texts with cached hidden states at the input of one block.

    Args:
        model: The model; earlier edits may be applied to it.
        texts: The texts.
        layer: Index of the lowest block that changes between passes.
    """

    def __init__(self, model: LanguageModel, texts: Sequence[EncodedText], layer: int) -> None:
        self.model, self.texts = model, list(texts)
        self.trunk = Trunk(model, layer)
        self._states: dict[int, Tensor] = {}
        for chunk in similar_lengths([len(text.ids) for text in self.texts], model.tokens_per_batch):
            tokens = model.encoder.collate([self.texts[row] for row in chunk], "right").to(model.device)
            states = self.trunk.states(tokens)
            if states is not None:
                self._states.update(
                    {row: state[: len(self.texts[row].ids)] for row, state in zip(chunk, states, strict=True)}
                )
        self._batches: dict[tuple[int, ...], TextBatch] = {}

    def batch(self, rows: Sequence[int]) -> TextBatch:
        """Returns a batch of some texts; recent batches are cached, since most methods reuse the same rows."""
        key = tuple(rows)
        if key not in self._batches:
            if len(self._batches) > 8:
                self._batches.clear()
            self._batches[key] = self._collate(key)
        return self._batches[key]

    def _collate(self, rows: Sequence[int]) -> TextBatch:
        tokens = self.model.encoder.collate([self.texts[row] for row in rows], "right").to(self.model.device)
        if any(row not in self._states for row in rows):
            return TextBatch(tokens, None)
        return TextBatch(tokens, torch.nn.utils.rnn.pad_sequence([self._states[row] for row in rows], batch_first=True))

    def head_inputs(self, batch: TextBatch, positions: Tensor) -> Tensor:
        """Returns head inputs (N, hidden size) at chosen positions (R, S); gradients flow if hooks require them."""
        return self.trunk.head_inputs(batch.tokens, positions, batch.states)
