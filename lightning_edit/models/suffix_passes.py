"""Forward passes from a given position and block on, reusing cached states before and below."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lightning_edit.models.attention import grouped_attention
from lightning_edit.models.fast_paths import problem_of
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.skipping import entering, skipped
from lightning_edit.models.trunk import Trunk
from lightning_edit.tokenization import EncodedText, TokenBatch

_PATH = "suffixes"
"""Name of this fast path in the model's record."""


class WholePasses:
    """Repeated forward passes over the same texts that change only from one block on.

    Args:
        model: The model.
        texts: R texts.
        starts: The first position of each text at which something changes.
        layer: The lowest block in which something changes.
    """

    def __init__(self, model: LanguageModel, texts: Sequence[EncodedText], starts: Sequence[int], layer: int) -> None:
        self.model = model
        self.batch = model.encoder.collate(texts, padding_side="right").to(model.device)
        self.start = torch.tensor(list(starts), device=model.device)
        self.trunk = Trunk(model, layer)
        self.states = self.trunk.states(self.batch)

    @property
    def offset(self) -> Tensor:
        """(R) int64: how many leading positions of each text :attr:`batch` leaves out."""
        return torch.zeros_like(self.start)

    def head_inputs(self, rows: Tensor, batch: TokenBatch, positions: Tensor) -> Tensor:
        """Returns head inputs for some of the texts.

        Args:
            rows: (K) int64 the texts.
            batch: ``self.batch.select(rows)``.
            positions: (K, S) bool, N of them true.

        Returns:
            (N, hidden size).
        """
        states = None if self.states is None else self.states[rows, : batch.input_ids.shape[1]]
        return self.trunk.head_inputs(batch, positions, states)

    def head_logits(self, rows: Tensor, batch: TokenBatch, positions: Tensor) -> Tensor:
        """Returns logits (N, vocabulary) for some of the texts; see :meth:`head_inputs`."""
        states = None if self.states is None else self.states[rows, : batch.input_ids.shape[1]]
        return self.trunk.head_logits(batch, positions, states)


class SuffixPasses(WholePasses):
    """Forward passes over each text from its start position on.

    The keys and values of the earlier positions are computed once for every block; each pass starts with an unmodified
    copy of this cache. The model's own forward runs with the blocks below skipped. Their cache entries stay, because
    masks are built from the length of the first block's cache.

    Args:
        model: The model.
        texts: R texts.
        starts: The first position of each text at which something changes.
        layer: The lowest block in which something changes.
    """

    def __init__(self, model: LanguageModel, texts: Sequence[EncodedText], starts: Sequence[int], layer: int) -> None:
        self.model, self.layer = model, layer
        self.start = torch.tensor(list(starts), device=model.device)
        prefixes = [EncodedText(text.ids[:start], (start, start)) for text, start in zip(texts, starts, strict=True)]
        suffixes = [
            EncodedText(text.ids[start:], (text.target[0] - start, text.target[1] - start))
            for text, start in zip(texts, starts, strict=True)
        ]
        self.batch = model.encoder.collate(suffixes, padding_side="right").to(model.device)
        self._cache = self._read_prefixes(model.encoder.collate(prefixes, padding_side="right").to(model.device))
        self._states: Tensor | None = None
        self._states = self._entering_states(torch.arange(len(texts), device=model.device))

    @property
    def offset(self) -> Tensor:
        """See :attr:`WholePasses.offset`."""
        return self.start

    @torch.no_grad()
    def _read_prefixes(self, before: TokenBatch) -> Any:
        """Computes the keys and values of the positions before the start, aligned right in each row.

        They are computed with right padding, which nothing reads; with left padding some models would fill padded
        positions with NaN, which no mask removes.
        """
        seen: list[Any] = []
        nowhere = torch.zeros_like(before.answer_mask)
        self.model.head_logits_of({**self.model.inputs(before), "use_cache": True}, nowhere, outputs=seen)
        length = before.input_ids.shape[1]
        place = torch.arange(length, device=before.input_ids.device)[None] - (length - self.start)[:, None]
        self._prefix_mask = (place >= 0).long()
        cache = seen[0].past_key_values
        for layer in cache.layers:
            if layer.keys.shape[-2] != length:
                raise ValueError(f"an attention window is shorter than the {length} positions before a subject")
            layer.keys, layer.values = _moved(layer.keys, place), _moved(layer.values, place)
        return cache

    @torch.no_grad()
    def _entering_states(self, rows: Tensor) -> Tensor:
        """Computes the inputs (R, S, hidden size) of the lowest block that changes."""
        seen: list[Tensor] = []

        def note(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        # Read before hooking: it may run a pass of its own.
        blocks, returns = self.model.layer_map.blocks, self.model.block_returns
        handle = blocks[self.layer].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with skipped(blocks[self.layer :], returns):
                self.head_inputs(rows, self.batch, torch.zeros_like(self.batch.answer_mask))
        finally:
            handle.remove()
        return seen[0]

    def head_inputs(self, rows: Tensor, batch: TokenBatch, positions: Tensor) -> Tensor:
        """See :meth:`WholePasses.head_inputs`."""
        return self._run(rows, batch, positions, self.model.head_inputs_of)

    def head_logits(self, rows: Tensor, batch: TokenBatch, positions: Tensor) -> Tensor:
        """See :meth:`WholePasses.head_logits`."""
        return self._run(rows, batch, positions, lambda *asked: self.model.head_logits_of(*asked)[0])

    def _run(
        self, rows: Tensor, batch: TokenBatch, positions: Tensor, ask: Callable[[dict[str, Any], Tensor], Tensor]
    ) -> Tensor:
        """Runs a pass over some of the texts, up to the last of the positions."""
        last = int(positions.any(0).nonzero().max()) if bool(positions.any()) else batch.input_ids.shape[1] - 1
        width = last + 1
        ids, positions, known = batch.input_ids[:, :width], positions[:, :width], self._prefix_mask[rows]
        inputs: dict[str, Any] = {
            "input_ids": ids,
            # Right padding is never read.
            "attention_mask": torch.cat([known, torch.ones_like(ids)], dim=1),
            "past_key_values": _selected(self._cache, rows),
            "use_cache": True,
        }
        if self.model.takes_position_ids:
            steps = torch.arange(width, device=rows.device)
            inputs["position_ids"] = self.start[rows][:, None] + steps[None]
        with ExitStack() as stack:
            stack.enter_context(grouped_attention(self.model.model))
            if self._states is not None:
                blocks = self.model.layer_map.blocks
                stack.enter_context(skipped(blocks[: self.layer], self.model.block_returns))
                stack.enter_context(entering(blocks[self.layer], self._states[rows, :width]))
            return ask(inputs, positions)


def _moved(values: Tensor, place: Tensor) -> Tensor:
    """Moves position ``place[r, p]`` of row r of (R, heads, P, D) values to p; zeros where it is negative."""
    index = place.clamp(min=0)[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    # Not a product: in rows without any position, some models attend to nothing and compute NaN.
    return values.gather(2, index).masked_fill((place < 0)[:, None, :, None], 0)


def _selected(cache: Any, rows: Tensor) -> Any:
    """Copies some rows of a cache, so that it can grow without changing the original."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    if not torch.equal(rows, torch.arange(len(cache.layers[0].keys), device=rows.device)):
        for layer in chosen.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
    return chosen


@torch.no_grad()
def shortest_passes(
    model: LanguageModel, texts: Sequence[EncodedText], starts: Sequence[int], layer: int
) -> WholePasses:
    """Returns passes from each text's start on if they match the full pass, else passes over whole texts.

    The first pass of a model, and the first on far longer texts, is compared with the full pass. If they differ, or
    the model's cache has another form, a warning is issued.

    Args:
        model: The model.
        texts: R texts.
        starts: The first position of each text at which something changes.
        layer: The lowest block in which something changes.
    """
    if not any(starts):
        return WholePasses(model, texts, starts, layer)
    longest = max(len(text.ids) for text in texts)
    if model.fast_paths.is_refused(_PATH, layer, longest):
        return WholePasses(model, texts, starts, layer)
    is_verified = model.fast_paths.is_verified(_PATH, layer, longest)
    whole = None if is_verified else WholePasses(model, texts, starts, layer)
    rows = torch.arange(len(texts), device=model.device)
    expected = None if whole is None else whole.head_logits(rows, whole.batch, _last(whole.batch))
    built: list[SuffixPasses] = []

    def short() -> Tensor | None:
        built.append(SuffixPasses(model, texts, starts, layer))
        return None if is_verified else built[0].head_logits(rows, built[0].batch, _last(built[0].batch))

    problem = problem_of(short, expected, model.dtype)
    if problem is None:
        if expected is not None and bool(expected.isfinite().all()):
            model.fast_paths.verify(_PATH, layer, longest)
        return built[0]
    model.fast_paths.refuse(_PATH, layer, longest)
    warnings.warn(
        f"the keys and values before the subject cannot be reused in {model.name} ({problem}); whole texts are run",
        stacklevel=2,
    )
    return whole if whole is not None else WholePasses(model, texts, starts, layer)


def _last(batch: TokenBatch) -> Tensor:
    """Returns (R, S) bool: the last position of each row."""
    last = torch.zeros_like(batch.answer_mask)
    last[torch.arange(len(batch)), batch.attention_mask.sum(1) - 1] = True
    return last
