"""The memory of routed edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class Memory:
    """Memory items, with the data that the router and the responder need.

    Args:
        requests: For each of M items, the requests that it answers.
        tensors: (M, …) values of the items, by name.
        texts: (M) text of each item, for responders that put it in front of prompts; empty if not needed.
        owners: (M) edit that each item belongs to, in a batch of independent edits; all 0 otherwise.
    """

    requests: tuple[tuple[EditRequest, ...], ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    owners: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.requests)
        object.__setattr__(self, "texts", self.texts or ("",) * count)
        object.__setattr__(self, "owners", self.owners or (0,) * count)
        lengths = {len(self.texts), len(self.owners), *(len(values) for values in self.tensors.values())}
        if lengths != {count}:
            raise ValueError(f"the memory has {count} items, but fields of {sorted(lengths)} entries")

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def all_requests(self) -> tuple[EditRequest, ...]:
        """The requests of all items."""
        return tuple(request for requests in self.requests for request in requests)

    def select(self, places: Sequence[int]) -> Memory:
        """Selects items, as the memory of one edit."""
        return Memory(
            tuple(self.requests[place] for place in places),
            {name: values[list(places)] for name, values in self.tensors.items()},
            tuple(self.texts[place] for place in places),
        )

    def split(self, sizes: Sequence[int]) -> list[Memory]:
        """Splits the items into the memories of consecutive edits with so many items each."""
        ends = list(accumulate(sizes))
        return [self.select(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    def with_tensors(self, **tensors: Tensor) -> Memory:
        """Replaces some of the items' values."""
        return replace(self, tensors={**self.tensors, **tensors})

    @staticmethod
    def concatenated(first: Memory, second: Memory) -> Memory:
        """Concatenates two memories of one kind, as the memory of one edit."""
        tensors = {name: _concatenate_padded(values, second.tensors[name]) for name, values in first.tensors.items()}
        return Memory((*first.requests, *second.requests), tensors, (*first.texts, *second.texts))

    @staticmethod
    def side_by_side(memories: Sequence[Memory]) -> Memory:
        """Joins the memories of independent edits; each item keeps the number of its edit."""
        joined = memories[0].select(range(len(memories[0])))
        for memory in memories[1:]:
            joined = Memory.concatenated(joined, memory)
        owners = tuple(edit for edit, memory in enumerate(memories) for _ in range(len(memory)))
        return replace(joined, owners=owners)


def _concatenate_padded(first: Tensor, second: Tensor) -> Tensor:
    """Concatenates values to (M + N, …) of the larger size: token ids (integers) padded with -1, others with 0."""
    size = [max(sizes) for sizes in zip(first.shape[1:], second.shape[1:], strict=True)]
    return torch.cat([_padded(first, size), _padded(second.to(first.device), size)])


def _padded(values: Tensor, size: Sequence[int]) -> Tensor:
    if list(values.shape[1:]) == list(size):
        return values
    missing = [want - have for have, want in zip(values.shape[1:], size, strict=True)]
    # From the last dimension to the first, each before and after the values.
    amounts = [amount for count in reversed(missing) for amount in (0, count)]
    return torch.nn.functional.pad(values, amounts, value=0 if values.is_floating_point() else -1)


def named_requests(requests: Sequence[EditRequest], taken: Sequence[str] = ()) -> tuple[EditRequest, ...]:
    """Gives every request a unique id, by which it can be undone; existing unique ids are kept."""
    used = set(taken)
    named = []
    for number, request in enumerate(requests):
        wanted = request.id or str(number)
        name, count = wanted, 1
        while name in used:
            count += 1
            name = f"{wanted}-{count}"
        used.add(name)
        named.append(replace(request, id=name))
    return tuple(named)


def with_free_ids(memory: Memory, beside: Memory) -> Memory:
    """Renames requests of a memory whose ids another memory already has."""
    taken = [request.id for request in beside.all_requests]
    named = iter(named_requests(memory.all_requests, taken))
    return replace(memory, requests=tuple(tuple(next(named) for _ in requests) for requests in memory.requests))
