"""Routed edits: a router decides once per prompt which memory item applies, and a responder answers for it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lightning_edit.components import build, describe
from lightning_edit.edits.base import TENSORS, Edit, Scorer, read_tensors
from lightning_edit.edits.batch import Changes
from lightning_edit.edits.memory import Memory
from lightning_edit.edits.provenance import Provenance
from lightning_edit.edits.routed_model import Decisions, RoutedModel
from lightning_edit.edits.routing import Responder, Router
from lightning_edit.edits.weight import with_prefix
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel


class RoutedEdit(Edit):
    """An edit stored in a memory, with a router in front of the model.

    The router decides once per prompt, without its target, and the decision holds for the whole answer. Prompts that
    match no item are passed unchanged to the layer below.

    Args:
        memory: The memory.
        router: Decides which item applies.
        responder: Answers for the item.
        provenance: Where the edit comes from.
    """

    kind = "routed"
    changes_model = False

    def __init__(self, memory: Memory, router: Router, responder: Responder, provenance: Provenance) -> None:
        super().__init__(provenance)
        self.memory, self.router, self.responder = memory, router, responder

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Names of the remembered requests."""
        return tuple(request.id for request in self.memory.all_requests)

    @contextmanager
    def layered(self, below: Scorer, model: LanguageModel) -> Iterator[Scorer]:
        """See :meth:`Edit.layered`; only the yielded scorer is edited, not ``model`` itself."""
        if below is not model:
            warnings.warn(
                f"{self.provenance.method} is applied on top of another edit with a router: prompts that it answers do "
                "not reach that edit",
                stacklevel=4,
            )
        with _routing(model, self.router, self.responder):
            yield RoutedModel(below, model, self.memory, self.router, self.responder, None, {})

    def joined(self, later: Edit) -> Edit | None:
        """See :meth:`Edit.joined`: joins the memories if router and responder have the same weights."""
        if not (isinstance(later, RoutedEdit) and self._has_same_weights(later)):
            return None
        memory = self.router.join(self.memory, later.memory)
        return RoutedEdit(memory, self.router, self.responder, replace(later.provenance, requests=memory.all_requests))

    def _has_same_weights(self, other: RoutedEdit) -> bool:
        pairs = ((self.router, other.router), (self.responder, other.responder))
        if all(mine is theirs for mine, theirs in pairs):
            return True
        # Frozen parts are not among the weights, but are named in the descriptions.
        if any(describe(mine) != describe(theirs) for mine, theirs in pairs):
            return False
        mine, theirs = ({**edit.router.state_dict(), **edit.responder.weights()} for edit in (self, other))
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)

    def without(self, id: str) -> RoutedEdit:
        """Returns the edit without one of its requests.

        Raises:
            EditError: If there is no such request, or its item also answers others.
        """
        if id not in self.request_ids:
            raise EditError(f"no request {id!r} in the memory; it has {list(self.request_ids)[:20]}")
        ids = [[request.id for request in requests] for requests in self.memory.requests]
        [place] = [place for place, members in enumerate(ids) if id in members]
        if len(ids[place]) > 1:
            raise EditError(f"the request {id!r} was edited together with {len(ids[place]) - 1} others, in one item")
        memory = self.router.rebuilt(self.memory, [other for other in range(len(ids)) if other != place])
        return RoutedEdit(memory, self.router, self.responder, replace(self.provenance, requests=memory.all_requests))

    @property
    def nbytes(self) -> int:
        """See :attr:`Edit.nbytes`: the memory with its texts, and the weights of the router and the responder."""
        tensors = [
            *self.memory.tensors.values(),
            *self.router.state_dict().values(),
            *self.responder.weights().values(),
        ]
        return int(sum(tensor.nbytes for tensor in tensors)) + sum(len(text.encode()) for text in self.memory.texts)

    def check_mergeable(self, action: str = "merged") -> None:
        """Refuses to merge, as a memory is not a change of the weights.

        Args:
            action: The refused action, for the message.

        Raises:
            EditError: Always.
        """
        raise EditError(
            f"this edit cannot be {action}: {self.provenance.method} puts a memory with a router in front of the model "
            "and leaves its weights alone; ship the edit's folder, and serve it with lightning-edit serve or as_hf()"
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """See :meth:`Edit.write`."""
        tensors = {f"memory/{name}": values for name, values in self.memory.tensors.items()}
        tensors.update({f"router/{name}": value for name, value in self.router.state_dict().items()})
        tensors.update({f"responder/{name}": value for name, value in self.responder.weights().items()})
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(plain, folder / TENSORS)
        return {
            "router": describe(self.router),
            "responder": describe(self.responder),
            "items": [len(requests) for requests in self.memory.requests],
            "texts": list(self.memory.texts),
        }

    @classmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> RoutedEdit:
        """See :meth:`Edit.read`; parts that depend on the base model are completed when the edit is applied."""
        tensors = read_tensors(folder / TENSORS)
        router = build(details["router"], Router, str(folder))
        responder = build(details["responder"], Responder, str(folder))
        router.load_state_dict(with_prefix(tensors, "router/"))
        responder.load_weights(with_prefix(tensors, "responder/"))
        requests = iter(provenance.requests)
        items = tuple(tuple(next(requests) for _ in range(count)) for count in details["items"])
        memory = Memory(items, with_prefix(tensors, "memory/"), tuple(details["texts"]))
        return cls(memory, router.eval(), responder.eval(), provenance)


class RoutedChanges(Changes):
    """Independent memories, each for its own rows of a batch.

    Args:
        memories: The memory of each edit.
        router: Decides which item applies.
        responder: Answers for the item.
    """

    def __init__(self, memories: Sequence[Memory], router: Router, responder: Responder) -> None:
        self.memories, self.router, self.responder = list(memories), router, responder
        # By the model and the edits below, which change what a router sees.
        self._decisions: dict[tuple[str, ...], Decisions] = {}

    def __len__(self) -> int:
        return len(self.memories)

    def edit(self, index: int, provenance: Provenance) -> RoutedEdit:
        """See :meth:`Changes.edit`."""
        memory = self.memories[index]
        return RoutedEdit(memory, self.router, self.responder, replace(provenance, requests=memory.all_requests))

    def non_finite(self) -> dict[int, str]:
        """See :meth:`Changes.non_finite`."""
        broken: dict[int, str] = {}
        for edit, memory in enumerate(self.memories):
            for name, values in memory.tensors.items():
                if not bool(values.isfinite().all()):
                    broken.setdefault(edit, name)
        return broken

    def without(self, edits: Collection[int]) -> RoutedChanges:
        """See :meth:`Changes.without`."""
        memories = [memory.select([]) if edit in edits else memory for edit, memory in enumerate(self.memories)]
        return RoutedChanges(memories, self.router, self.responder)

    @contextmanager
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """See :meth:`Changes.layered`."""
        memory = Memory.side_by_side(self.memories)
        decisions = self._decisions.setdefault((model.fingerprint.digest, *model.applied_around), {})
        with _routing(model, self.router, self.responder):
            yield RoutedModel(model, model, memory, self.router, self.responder, list(rows), decisions)


@contextmanager
def _routing(model: LanguageModel, router: Router, responder: Responder) -> Iterator[None]:
    """Prepares a router and its responder, and refuses direct calls of the model, which would not be routed."""
    router.setup(model)
    responder.setup(model)
    with model.direct_calls_refused():
        yield
