"""Caches the hidden states below the lowest edit site, which no edit can change."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_edit.models.fast_paths import finite_rows, problem_of
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.recording import first_tensor
from lightning_edit.models.skipping import entering, skipped
from lightning_edit.models.trunk_store import (
    Entry,
    Identity,
    Kept,
    MemoryStore,
    TrunkStore,
    digest_of_texts,
    needed_bytes,
    open_or_build,
)
from lightning_edit.tokenization import EncodedText, TextKey, TokenBatch

_LOG = logging.getLogger(__name__)

_PATH = "hidden states"
"""Name of this fast path in the model's record."""
_GROUP = 32
"""Texts in one forward pass of :meth:`Trunk.fill`."""


class Trunk:
    """Cache of the hidden states that enter one block, for the texts it was filled with.

    The model's own forward runs with the blocks below skipped, so it still computes masks, positions and everything
    else that depends on the input. The first use is compared with the full forward pass; if they differ, the trunk
    issues a warning and uses the full pass from then on.

    Args:
        model: The base model.
        layer: Index of the lowest block to run: that of the lowest edit site.
        limit: Bytes of hidden states to cache; other texts are computed each time.
        dtype: Precision of the cache; defaults to the model's.
    """

    def __init__(
        self, model: LanguageModel, layer: int, limit: int = 4 * 2**30, dtype: torch.dtype | None = None
    ) -> None:
        self.model, self.layer, self.limit = model, layer, limit
        self.dtype = dtype
        self.works: bool | None = None if layer > 0 else False
        self.store: TrunkStore = MemoryStore()
        self._returns = 0
        self._sizes = (0, 0)

    def head_inputs(self, batch: TokenBatch, positions: Tensor, states: Tensor | None = None) -> Tensor:
        """Like :meth:`LanguageModel.head_inputs`, without the blocks below the trunk's layer.

        Args:
            batch: R rows.
            positions: (R, S) bool.
            states: Result of :meth:`states` for the batch, if available.
        """
        if not self._serves(batch):
            return self._full(batch, positions)
        return self._short(batch, positions, states)

    def head_logits(self, batch: TokenBatch, positions: Tensor, states: Tensor | None = None) -> Tensor:
        """Returns logits (N, vocabulary) at chosen positions; see :meth:`head_inputs`."""
        if not self._serves(batch):
            return self.model.head_logits(batch, positions)[0]
        with self._shortened(batch, states):
            return self.model.head_logits(batch, positions)[0]

    def answer_logits(self, batch: TokenBatch) -> Tensor:
        """Like :meth:`LanguageModel.answer_logits`, without the blocks below the trunk's layer."""
        return self.head_logits(batch, batch.answer_mask)

    def _serves(self, batch: TokenBatch) -> bool:
        if self.works is None:
            self._verify(batch)
        return bool(self.works)

    def _full(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        return self.model.head_inputs(batch, positions)

    def _short(self, batch: TokenBatch, positions: Tensor, states: Tensor | None = None) -> Tensor:
        with self._shortened(batch, states):
            return self._full(batch, positions)

    @contextmanager
    def _shortened(self, batch: TokenBatch, states: Tensor | None) -> Iterator[None]:
        """Skips the blocks below, for passes over a batch."""
        blocks = self.model.layer_map.blocks
        states = self._gather(batch) if states is None else states
        with skipped(blocks[: self.layer], self._returns), entering(blocks[self.layer], states):
            yield

    def states(self, batch: TokenBatch) -> Tensor | None:
        """Returns the trunk block's inputs (R, S, hidden size); None if the full pass is used."""
        return self._gather(batch) if self._serves(batch) else None

    def references(self, batch: TokenBatch, states: Tensor | None = None) -> Tensor:
        """Returns the unedited model's head inputs (N, hidden size) at the batch's answer positions.

        Args:
            batch: R rows.
            states: Result of :meth:`states` for the batch, if available.
        """
        kept = [self.store.get(key) for key in batch.keys]
        references = [entry.reference for entry in kept if entry is not None and entry.reference is not None]
        if len(references) == len(kept):
            return torch.cat(references).to(device=self.model.device, dtype=self.model.dtype)
        with torch.no_grad():
            return self.head_inputs(batch, batch.answer_mask, states)

    def fill(
        self, texts: Iterable[EncodedText], reference_texts: Iterable[EncodedText] = (), folder: Path | None = None
    ) -> None:
        """Computes and caches the states of texts, up to the limit, with a progress bar.

        The grouping depends only on the texts, so the same texts always give bit-identical states, and an interrupted
        run resumes exactly. The size is logged first.

        Args:
            texts: Texts to cache.
            reference_texts: Texts whose unedited head inputs are cached as well.
            folder: Cache on disk, in a subfolder named after base model, tokenizer, layer, precision and texts; an
                existing one is reused.

        Raises:
            BaseModelMismatchError: If that subfolder holds another cache.
            ConfigurationError: If the disk has too little space.
        """
        wanted = {text.key: text for text in texts}
        compared = {text.key: text for text in reference_texts}
        wanted.update(compared)
        if not wanted:
            return
        if not self._serves(self.model.encoder.collate(list(wanted.values())[:2]).to(self.model.device)):
            return
        dtype = self.dtype or self.model.dtype
        groups = self._within_limit(self._grouped(wanted, compared), len(wanted), dtype, folder)
        if folder is not None:
            self.store = self._on_disk(folder, groups, dtype)
            return
        memory = MemoryStore()
        for key, kept in self._computed(groups):
            reference = kept.reference.to(dtype) if kept.reference is not None else None
            memory.put(key, Kept(kept.states.to(dtype), reference))
        self.store = memory

    def caching_passes(self) -> ForwardPasses | None:
        """Returns full passes of the unedited model that cache the states of every text in memory.

        At the limit, all earlier states are dropped. None if only the full pass can be used.
        """
        return None if self.works is False else _CachingPasses(self)

    def cached_passes(self) -> ForwardPasses | None:
        """Returns passes that skip the blocks below the trunk's layer for texts with cached states.

        Edits may be applied to blocks from that layer on. Other texts use the full forward pass.
        """
        return None if self.works is False else _CachedPasses(self)

    def keep(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        """Returns the head inputs of a full pass and caches its states; see :meth:`caching_passes`."""
        if not self._serves(batch):
            return self._full(batch, positions)
        if not isinstance(self.store, MemoryStore) or self.store.bytes > self.limit:
            self.store = MemoryStore()
        states, inputs = self._run(batch, positions, whole=True)
        for key, state in zip(batch.keys, states, strict=True):
            self.store.put(key, Kept(state.to(self.dtype or state.dtype)))
        return inputs

    def holds(self, batch: TokenBatch) -> bool:
        """Whether the states of every text of a batch are cached and usable."""
        return bool(self.works) and all(self.store.get(key) is not None for key in batch.keys)

    @staticmethod
    def _grouped(wanted: dict[TextKey, EncodedText], compared: dict[TextKey, EncodedText]) -> list[_Group]:
        groups = []
        for some, referenced in ((wanted.keys() - compared.keys(), False), (compared.keys(), True)):
            ordered = [wanted[key] for key in sorted(some, key=lambda key: (len(key), key))]
            groups += [_Group(ordered[start : start + _GROUP], referenced) for start in range(0, len(ordered), _GROUP)]
        return groups

    def _within_limit(self, groups: list[_Group], count: int, dtype: torch.dtype, folder: Path | None) -> list[_Group]:
        """Returns the first groups that fit into the limit, and logs their size."""
        kept, total = [], 0
        for group in groups:
            total += needed_bytes(group.entries(), self._sizes, dtype)
            if total > self.limit:
                break
            kept.append(group)
        size = needed_bytes((entry for group in kept for entry in group.entries()), self._sizes, dtype)
        _LOG.info(
            "hidden states below block %d: keeping %d of %d texts, %.2f GB in %s",
            self.layer, sum(len(group.texts) for group in kept), count, size / 2**30, folder or "memory",
        )  # fmt: skip
        return kept

    def _on_disk(self, folder: Path, groups: list[_Group], dtype: torch.dtype) -> TrunkStore:
        entries = [entry for group in groups for entry in group.entries()]
        identity = Identity(
            self.model.name,
            f"{self.model.fingerprint.structure}-{self.model.fingerprint.digest}",
            self.model.fingerprint.tokenizer or "",
            self.layer,
            str(dtype).removeprefix("torch."),
            digest_of_texts((*entry.key, entry.answers) for entry in entries),
        )
        place = folder / identity.name
        store, built = open_or_build(place, identity, entries, self._sizes, dtype, lambda: self._computed(groups))
        _LOG.info("hidden states %s %s", "written to" if built else "read from", place)
        return store

    def _computed(self, groups: list[_Group]) -> Iterator[tuple[TextKey, Kept]]:
        for group in tqdm(groups, desc="hidden states", leave=False, disable=None if groups else True):
            yield from self._compute_group(group)

    @torch.no_grad()
    def _compute_group(self, group: _Group) -> list[tuple[TextKey, Kept]]:
        batch = self.model.encoder.collate(group.texts).to(self.model.device)
        positions = batch.answer_mask if group.referenced else torch.zeros_like(batch.answer_mask)
        states, inputs = self._run(batch, positions, whole=group.referenced)
        references: list[Tensor | None] = [None] * len(states)
        if group.referenced:
            references = [part.clone() for part in inputs.split(batch.target_lengths.tolist())]
        kept = [Kept(part, reference) for part, reference in zip(states, references, strict=True)]
        return list(zip(batch.keys, kept, strict=True))

    @torch.no_grad()
    def _verify(self, batch: TokenBatch) -> None:
        """Compares the short pass with the full one, once for a model and a layer; warns if they differ.

        If the full pass is not finite, the next batch is compared instead.
        """
        record, length = self.model.fast_paths, batch.input_ids.shape[1]
        if record.is_refused(_PATH, self.layer, length):
            self.works = False
            return
        if record.is_verified(_PATH, self.layer, length):
            self.works = True
            self._returns, self._sizes = record.details(_PATH, self.layer)
            return
        positions, outputs = _compared_positions(batch), list[Any]()
        block = self.model.layer_map.blocks[self.layer]
        handle = block.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            full = self._full(batch, positions)
        finally:
            handle.remove()
        if not bool(finite_rows(full).any()):
            return

        def short() -> Tensor:
            output = outputs[0]
            self._returns = len(output) if isinstance(output, tuple) else 0
            self._sizes = first_tensor(output).shape[-1], full.shape[-1]
            return self._short(batch, positions)

        problem = problem_of(short, full, self.model.dtype)
        self.works = problem is None
        if problem is None:
            record.verify(_PATH, self.layer, length, (self._returns, self._sizes))
        else:
            record.refuse(_PATH, self.layer, length)
            warnings.warn(
                f"the hidden states below block {self.layer} cannot be reused in {self.model.name} ({problem}); the "
                "full forward pass is used from now on",
                stacklevel=3,
            )

    def _gather(self, batch: TokenBatch) -> Tensor:
        """Returns the states (R, S, hidden size) of a batch, with zeros at padding."""
        kept = [self.store.get(key) for key in batch.keys]
        held = [entry.states for entry in kept if entry is not None]
        if len(held) == len(kept):
            rows = [states.to(device=self.model.device, dtype=self.model.dtype) for states in held]
        else:
            rows = self._run(batch, torch.zeros_like(batch.answer_mask), whole=False)[0]
        states = rows[0].new_zeros(*batch.input_ids.shape, rows[0].shape[-1])
        for row, state in enumerate(rows):
            states[row, batch.attention_mask[row].bool()] = state
        return states

    @torch.no_grad()
    def _run(self, batch: TokenBatch, positions: Tensor, whole: bool) -> tuple[list[Tensor], Tensor]:
        """Computes the states of each row, and the head inputs at ``positions`` if the whole model is run."""
        blocks = self.model.layer_map.blocks
        seen: list[Tensor] = []
        handle = blocks[self.layer].register_forward_pre_hook(_recording(seen), with_kwargs=True)
        try:
            # The block itself is skipped too, because edits may be applied to it.
            with skipped([] if whole else blocks[self.layer :], self._returns):
                inputs = self._full(batch, positions)
        finally:
            handle.remove()
        return [row[mask].clone() for row, mask in zip(seen[0], batch.attention_mask.bool(), strict=True)], inputs


class _CachingPasses:
    """See :meth:`Trunk.learner`."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk

    def head_inputs(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        return self._trunk.keep(batch, positions)


class _CachedPasses:
    """See :meth:`Trunk.reader`."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk

    def head_inputs(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        if self._trunk.holds(batch):
            return self._trunk.head_inputs(batch, positions)
        return self._trunk.model.head_inputs(batch, positions)


@dataclass(frozen=True)
class _Group:
    """The texts of one forward pass.

    Args:
        texts: The texts.
        referenced: Whether the unedited head inputs are cached as well.
    """

    texts: list[EncodedText]
    referenced: bool

    def entries(self) -> list[Entry]:
        return [Entry(text.key, len(text.ids), len(text.target_ids) if self.referenced else 0) for text in self.texts]


def _compared_positions(batch: TokenBatch) -> Tensor:
    """Returns (R, S) bool: the answer positions, or each text's last position if there are none."""
    if bool(batch.answer_mask.any()):
        return batch.answer_mask
    last = torch.zeros_like(batch.answer_mask)
    last[torch.arange(len(batch)), batch.attention_mask.cumsum(1).argmax(1)] = True
    return last


def _recording(seen: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    return hook
