"""Keeps the hidden states below the lowest edit site, which no edit can change."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.models.language_model import LanguageModel
from lightning_edit.tokenization import TokenBatch

_TOLERANCE = 1e-3
"""Largest relative difference of logits between the short and the full forward pass that counts as rounding."""


@contextmanager
def skipped(blocks: Sequence[nn.Module], returns: int) -> Iterator[None]:
    """Lets blocks pass on what they are given, for the length of the context.

    Args:
        blocks: The blocks.
        returns: Length of the tuple that such a block returns; 0 where it returns a tensor.
    """

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *([None] * (returns - 1))) if returns else hidden

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(_restore, block)
            block.forward = pass_on  # type: ignore[assignment]
        yield


def _restore(block: nn.Module) -> None:
    # The replacement lies on the instance; without it, the class's own forward is found again.
    vars(block).pop("forward", None)


@contextmanager
def entering(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Gives a block other hidden states than the model would, for the length of the context.

    Args:
        block: The block.
        hidden: (R, S, hidden size).
    """

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    handle = block.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Trunk:
    """The hidden states that enter one block, for every text that was asked for, each computed once.

    The model's own forward runs with the blocks below left out, so masks, positions and whatever else it computes
    from the whole input stay its own. The first use is compared with the full forward pass; where they differ, the
    trunk gives up with a warning, and the full pass is taken from then on.

    Args:
        model: The base model.
        layer: Index of the lowest block that is run again: the one of the lowest edit site.
        limit: Bytes of hidden states to keep; texts beyond it are computed each time.
    """

    def __init__(self, model: LanguageModel, layer: int, limit: int = 4 * 2**30) -> None:
        self.model, self.layer, self.limit = model, layer, limit
        self.bytes = 0
        self.works: bool | None = None if layer > 0 else False
        self._returns = 0
        self._states: dict[tuple[int, ...], Tensor] = {}
        self._references: dict[tuple[int, ...], Tensor] = {}

    def answer_logits(self, batch: TokenBatch) -> Tensor:
        """As :meth:`LanguageModel.answer_logits`, without the blocks below the trunk's layer."""
        return self.head_logits(batch, batch.answer_mask)[0]

    def head_logits(self, batch: TokenBatch, positions: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`LanguageModel.head_logits`, without the blocks below the trunk's layer."""
        if self.works is None:
            return self._prove(batch, positions, extra)
        if not self.works:
            return self.model.head_logits(batch, positions, extra)
        return self._short(batch, positions, extra)

    def _short(self, batch: TokenBatch, positions: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
        blocks = self.model.layer_map.blocks
        states = self._gather(batch)
        with skipped(blocks[: self.layer], self._returns), entering(blocks[self.layer], states):
            return self.model.head_logits(batch, positions, extra)

    def references(self, batch: TokenBatch) -> Tensor:
        """(N, hidden size) head inputs of the unedited model at the batch's answer positions, each computed once."""
        keys = _keys(batch)
        missing = [row for row, key in enumerate(keys) if key not in self._references]
        if missing:
            part = batch.select(torch.tensor(missing, device=batch.input_ids.device))
            with torch.no_grad():
                inputs = self.head_logits(part, part.answer_mask)[1]
            for row, own in zip(missing, inputs.split(part.target_lengths.tolist()), strict=True):
                self._keep(self._references, keys[row], own.clone())
        return torch.cat([self._references[key] for key in keys])

    def _prove(self, batch: TokenBatch, positions: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Takes the full pass, and compares the short one with it."""
        returned: list[int] = []

        def record(module: nn.Module, args: Any, output: Any) -> None:
            returned.append(len(output) if isinstance(output, tuple) else 0)

        handle = self.model.layer_map.blocks[self.layer].register_forward_hook(record)
        try:
            with torch.no_grad():
                full = self.model.head_logits(batch, positions, extra)[0]
        finally:
            handle.remove()
        self._returns = returned[0]
        found = self._short(batch, positions, extra)
        short = found[0].detach()
        difference = float((short - full).norm() / full.norm().clamp(min=1e-12))
        # Half precision rounds more coarsely than the tolerance that float32 allows.
        allowed = max(_TOLERANCE, 8 * float(torch.finfo(short.dtype).eps))
        self.works = difference <= allowed
        if not self.works:
            warnings.warn(
                f"the hidden states below block {self.layer} cannot be reused in {self.model.name}: logits differ by "
                f"{difference:.1e} (relative) from the full forward pass, which is taken from now on",
                stacklevel=3,
            )
        # Hooks may have recorded tensors of the last pass, so that is the one to return.
        return found if self.works else self.model.head_logits(batch, positions, extra)

    def _gather(self, batch: TokenBatch) -> Tensor:
        """(R, S, hidden size) the states of a batch, right-padded with zeros."""
        keys = _keys(batch)
        fresh = self._compute(batch, [row for row, key in enumerate(keys) if key not in self._states], keys)
        rows = [fresh[key] if key in fresh else self._states[key] for key in keys]
        states = rows[0].new_zeros(*batch.input_ids.shape, rows[0].shape[-1])
        for row, own in enumerate(rows):
            states[row, batch.attention_mask[row].bool()] = own
        return states

    @torch.no_grad()
    def _compute(
        self, batch: TokenBatch, missing: list[int], keys: list[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Tensor]:
        if not missing:
            return {}
        part = batch.select(torch.tensor(missing, device=batch.input_ids.device))
        blocks = self.model.layer_map.blocks
        seen: list[Tensor] = []
        handle = blocks[self.layer].register_forward_pre_hook(_recording(seen), with_kwargs=True)
        try:
            with skipped(blocks[self.layer :], self._returns):
                self.model.head_logits(part, torch.zeros_like(part.target_mask))
        finally:
            handle.remove()
        fresh = {}
        for position, row in enumerate(missing):
            fresh[keys[row]] = seen[0][position, part.attention_mask[position].bool()].clone()
            self._keep(self._states, keys[row], fresh[keys[row]])
        return fresh

    def _keep(self, where: dict[tuple[int, ...], Tensor], key: tuple[int, ...], value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if where is self._references or self.bytes + size <= self.limit:
            where[key] = value
            self.bytes += size


def _keys(batch: TokenBatch) -> list[tuple[int, ...]]:
    """The token ids of each row and the place of its target, which together say all that a row depends on."""
    keys = []
    for ids, mask, target in zip(
        batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.target_mask.tolist(), strict=True
    ):
        real = [id for id, used in zip(ids, mask, strict=True) if used]
        keys.append((sum(target), *real))
    return keys


def _recording(seen: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    return hook
