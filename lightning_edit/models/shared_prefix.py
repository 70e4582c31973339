"""Forward passes over texts that begin alike: the keys and values of the common prefix are computed once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edit.errors import ConfigurationError
from lightning_edit.models.attention import grouped_attention
from lightning_edit.models.fast_paths import problem_of
from lightning_edit.models.generation import first_generated_logits
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.tokenization import EncodedText, TokenBatch

_MIN_TOKENS = 64
"""Minimum length, in tokens, of a prefix that is computed once and reused."""
_MIN_SAVED_TOKENS = 256
"""Fewest tokens that reusing a prefix must save, over all texts."""
_PADDING = 8
"""Padded positions between prefix and suffix in the check."""
_WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention")
"""Names of attention windows in configurations of transformers."""
_PATH = ("shared prefix", 0)
"""Name and layer of this fast path in the model's record."""


class SharedPrefix:
    """Keys and values of tokens that several texts begin with, and forward passes that reuse them.

    They hold for the edits that are applied to the model when they are computed.

    Args:
        model: The model.
        ids: The tokens (L).

    Raises:
        ValueError: If the model does not keep the keys and values of all tokens.
    """

    def __init__(self, model: LanguageModel, ids: Sequence[int]) -> None:
        self.model = model
        self.ids = torch.tensor(list(ids), device=model.device)[None]
        nowhere, outputs = torch.zeros_like(self.ids, dtype=torch.bool), list[Any]()
        inputs = {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "use_cache": True}
        with torch.no_grad():
            model.head_logits_of(inputs, nowhere, outputs=outputs)
        self._cache = outputs[0].past_key_values
        for layer in self._cache.layers:
            if layer.keys.shape[-2] != len(self):
                raise ValueError(f"an attention window is shorter than a prefix of {len(self)} tokens")

    def __len__(self) -> int:
        return self.ids.shape[1]

    def cache(self, rows: int) -> Any:
        """Returns a growing cache with keys and values (rows, heads, L, D) in each layer."""
        grown = copy.copy(self._cache)
        grown.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in grown.layers:
            layer.keys, layer.values = (each.expand(rows, -1, -1, -1) for each in (layer.keys, layer.values))
        return grown

    def head_inputs(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        """Returns head inputs (N, hidden size) at positions (R, S) of right-padded texts.

        Raises:
            ConfigurationError: If a text does not begin with the prefix.
        """
        length = len(self)
        self._check(batch.input_ids)
        ids = batch.input_ids[:, length:]
        return self._head_inputs(ids, torch.ones_like(ids), positions[:, length:])

    def _check(self, ids: Tensor) -> None:
        if ids.shape[1] <= len(self) or not bool((ids[:, : len(self)] == self.ids).all()):
            raise ConfigurationError("a text does not begin with the prefix that is reused for it")

    def continued(self, texts: Sequence[EncodedText]) -> tuple[Tensor, Tensor]:
        """Returns ids and attention mask (R, S) of whole texts whose padding stands between prefix and suffix.

        In this form ``generate`` of transformers continues the texts from :meth:`cache`.

        Raises:
            ConfigurationError: If a text does not begin with the prefix.
        """
        for text in texts:
            self._check(torch.tensor([text.ids], device=self.ids.device))
        suffixes = [EncodedText(text.ids[len(self) :], (0, 0)) for text in texts]
        batch = self.model.encoder.collate(suffixes, padding_side="left").to(self.model.device)
        prefix = self.ids.expand(len(texts), -1)
        return torch.cat([prefix, batch.input_ids], 1), torch.cat([torch.ones_like(prefix), batch.attention_mask], 1)

    def _head_inputs(self, ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        mask = torch.cat([torch.ones_like(self.ids).expand(len(ids), -1), attention_mask], 1)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "past_key_values": self.cache(len(ids)),
            "use_cache": True,
        }
        if self.model.takes_position_ids:
            inputs["position_ids"] = (mask.cumsum(1) - 1)[:, len(self) :]
        with grouped_attention(self.model.model):
            return self.model.head_inputs_of(inputs, positions)

    def last_head_inputs(self, texts: Sequence[EncodedText]) -> Tensor:
        """Returns head inputs (R, hidden size) at the last token of texts, padded as in :meth:`continued`."""
        ids, mask = (values[:, len(self) :] for values in self.continued(texts))
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        return self._head_inputs(ids, mask, last)


@torch.no_grad()
def shared_prefix(model: LanguageModel, texts: Sequence[EncodedText], new_tokens: int = 0) -> SharedPrefix | None:
    """Returns the prefix that all texts have in common; None if it saves little, or cannot be reused in this model.

    The first use with a model, and the first with far longer texts, is compared with the full pass. If they differ, or
    the model's cache has another form, a warning is issued once, and whole texts are run from then on. Texts that are
    longer than an attention window are always run whole, because windows count padded positions.

    Args:
        model: The model.
        texts: The texts. Their last token and the tokens of their targets stay outside the prefix.
        new_tokens: Number of tokens to generate after them.
    """
    ends = [(text.target[0] if text.target[1] > text.target[0] else len(text.ids)) - 1 for text in texts]
    length = _common_length([text.ids[:end] for text, end in zip(texts, ends, strict=True)]) if len(texts) > 1 else 0
    longest = max((len(text.ids) for text in texts), default=0) + new_tokens
    if length < _MIN_TOKENS or (len(texts) - 1) * length < _MIN_SAVED_TOKENS:
        return None
    if model.fast_paths.is_refused(*_PATH, longest) or longest + _PADDING > _attention_window(
        model, longest + _PADDING
    ):
        return None
    built: list[SharedPrefix] = []
    if model.fast_paths.is_verified(*_PATH, longest):
        problem = problem_of(lambda: built.append(SharedPrefix(model, texts[0].ids[:length])), None, model.dtype)
    else:
        problem = _problem(model, max(texts, key=lambda text: len(text.ids)), length, built)
    if problem is None:
        model.fast_paths.verify(*_PATH, longest)
        return built[0]
    model.fast_paths.refuse(*_PATH, longest)
    warnings.warn(
        f"the keys and values of a common prefix cannot be reused in {model.name} ({problem}); whole texts are run",
        stacklevel=2,
    )
    return None


def _attention_window(model: LanguageModel, default: int) -> int:
    """Smallest attention window in the model's configuration; ``default`` if it has none."""
    config: Any = model.model.config.get_text_config()
    windows = (getattr(config, name, None) for name in _WINDOWS)
    return min((window for window in windows if isinstance(window, int) and window > 0), default=default)


def _problem(model: LanguageModel, text: EncodedText, length: int, built: list[SharedPrefix]) -> str | None:
    """Compares a text and a shorter one, with padding in between, with the full pass; keeps the prefix."""
    suffix = text.ids[length:]
    longer = suffix + suffix[-1:] * max(_PADDING + 1 - len(suffix), 0)
    checked = [EncodedText(text.ids[:length] + rest, (0, 0)) for rest in (longer, longer[:-_PADDING])]
    expected = _last_head_inputs(model, checked), first_generated_logits(model, checked)
    if not all(bool(values.isfinite().all()) for values in expected):
        return "the full pass gives values that are not finite"

    def head_inputs() -> Tensor:
        built.append(SharedPrefix(model, text.ids[:length]))
        return built[0].last_head_inputs(checked)

    def logits() -> Tensor:
        return first_generated_logits(model, checked, built[0])

    return problem_of(head_inputs, expected[0], model.dtype) or problem_of(logits, expected[1], model.dtype)


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows have in common."""
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _last_head_inputs(model: LanguageModel, texts: Sequence[EncodedText]) -> Tensor:
    """Head inputs (R, hidden size) at the last token of texts, each run by itself."""
    rows = []
    for text in texts:
        batch = model.encoder.collate([text]).to(model.device)
        last = torch.zeros_like(batch.answer_mask)
        last[:, -1] = True
        rows.append(model.head_inputs(batch, last))
    return torch.cat(rows)
