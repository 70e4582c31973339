"""Routed edits: a router decides once per prompt which memory item applies, and a responder answers for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_edit.components import build, describe
from lightning_edit.edits.base import TENSORS, Edit, Scorer, read_tensors
from lightning_edit.edits.batch import Changes
from lightning_edit.edits.memory import Memory
from lightning_edit.edits.provenance import Provenance
from lightning_edit.edits.rows import check_prompts
from lightning_edit.edits.weight import with_prefix
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.perplexity import losses_of_rows
from lightning_edit.models.scoring import Score
from lightning_edit.records import EditRequest, Route

_ROUTED_SHARE = 4
"""Perplexity: 1 / this share of a text row is its prompt, on which the row is routed."""


@dataclass(frozen=True)
class Match:
    """Match of prompts with memory items.

    Args:
        scores: (P, M) larger is closer; only the closest item may answer a prompt.
        hits: (P, M) bool: whether the item answers if it is the closest one.
    """

    scores: Tensor
    hits: Tensor


class Router(nn.Module, ABC):
    """Matches prompts with memory items, and joins memories."""

    @abstractmethod
    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """Matches each prompt, without its target, with each item.

        Args:
            model: The base model.
            prompts: P prompts.
            memory: M items, at least one.
            allowed: (P, M) bool: the items of the edit that a prompt is under; scores of others are ignored.
        """

    def setup(self, model: LanguageModel) -> None:
        """Prepares for a base model; called whenever an edit is applied."""

    def join(self, first: Memory, second: Memory) -> Memory:
        """Joins two memories. By default a later item replaces an earlier one about the same facts."""
        facts = {_facts(requests) for requests in second.requests}
        kept = [place for place, requests in enumerate(first.requests) if _facts(requests) not in facts]
        return Memory.concatenated(first.select(kept), _with_free_ids(second, first.select(kept)))

    def reset(self, memory: Memory) -> Memory:
        """Undoes changes of items by joining; by default joining changes none."""
        return memory


class Responder(nn.Module, ABC):
    """Answers prompts for the items that they were routed to."""

    @abstractmethod
    def score(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        targets: Sequence[str],
        items: Sequence[int],
        memory: Memory,
        references: Sequence[Tensor | None],
        keep_head_input: bool,
    ) -> list[Score]:
        """Scores targets; prompt p was routed to item ``items[p]``. See :meth:`LanguageModel.score`."""

    @abstractmethod
    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        max_new_tokens: Sequence[int],
        items: Sequence[int],
        memory: Memory,
        settings: dict[str, Any],
    ) -> list[str]:
        """Continues prompts; see :meth:`score` and :meth:`LanguageModel.generate`."""

    def setup(self, model: LanguageModel) -> None:
        """Prepares for a base model; called whenever an edit is applied."""

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights to store with an edit."""
        return self.state_dict()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Loads :meth:`weights`, possibly before there is a base model."""
        self.load_state_dict(state)


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
        with _routed_model(below, model, self.memory, self.router, self.responder, None) as scorer:
            yield scorer

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
        original = self.router.reset(self.memory)
        singles = [original.select([other]) for other in range(len(ids)) if other != place]
        memory = reduce(self.router.join, singles) if singles else original.select([])
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

    def __len__(self) -> int:
        return len(self.memories)

    def edit(self, index: int, provenance: Provenance) -> RoutedEdit:
        """See :meth:`Changes.edit`."""
        memory = self.memories[index]
        return RoutedEdit(memory, self.router, self.responder, replace(provenance, requests=memory.all_requests))

    @contextmanager
    def layered(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """See :meth:`Changes.layered`."""
        memory = Memory.side_by_side(self.memories)
        with _routed_model(model, model, memory, self.router, self.responder, list(rows)) as scorer:
            yield scorer


@contextmanager
def _routed_model(
    below: Scorer, model: LanguageModel, memory: Memory, router: Router, responder: Responder, rows: list[int] | None
) -> Iterator[Scorer]:
    router.setup(model)
    responder.setup(model)
    with model.direct_calls_refused():
        yield RoutedModel(below, model, memory, router, responder, rows)


class RoutedModel:
    """Scores and generates by sending every prompt either to the layer below or to the responder.

    Args:
        below: Answers prompts that match no item.
        model: The base model.
        memory: The memory.
        router: Decides which item applies.
        responder: Answers for the item.
        rows: The edit that each prompt is under; None for one edit for all.
    """

    def __init__(
        self,
        below: Scorer,
        model: LanguageModel,
        memory: Memory,
        router: Router,
        responder: Responder,
        rows: list[int] | None,
    ) -> None:
        self._below, self._model, self._memory = below, model, memory
        self._router, self._responder, self._rows = router, responder, rows

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """Returns the routing decision for each prompt."""
        return [route for route, _ in self._routed(prompts)]

    @torch.no_grad()
    def _routed(self, prompts: Sequence[str]) -> list[tuple[Route, int]]:
        """Returns the route of each prompt, and the index of its closest memory item."""
        if self._rows is not None:
            check_prompts(prompts, self._rows)
        if not len(self._memory) or not prompts:
            return [(Route(0.0, False), -1)] * len(prompts)
        questions = list(zip(prompts, self._rows or [0] * len(prompts), strict=True))
        unique = list(dict.fromkeys(questions))
        owners = torch.tensor(self._memory.owners)
        allowed = owners[None, :] == torch.tensor([row for _, row in unique])[:, None]
        match = self._router.match(self._model, [prompt for prompt, _ in unique], self._memory, allowed)
        scores = match.scores.masked_fill(~allowed.to(match.scores.device), -math.inf)
        best, items = scores.max(dim=1)
        hit = match.hits.gather(1, items[:, None])[:, 0] & (best > -math.inf)
        decisions = zip(best.tolist(), hit.tolist(), items.tolist(), strict=True)
        routed = {
            question: (self._route(*decision), decision[2])
            for question, decision in zip(unique, decisions, strict=True)
        }
        return [routed[question] for question in questions]

    def _route(self, score: float, hit: bool, item: int) -> Route:
        return Route(score, hit, self._memory.requests[item]) if score > -math.inf else Route(0.0, False)

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
        passes: ForwardPasses | None = None,
    ) -> list[Score]:
        """See :meth:`LanguageModel.score`; ``passes`` is used for prompts outside all scopes."""
        routed = self._routed(prompts)
        kept = list(references) if references is not None else [None] * len(prompts)
        stay = [index for index, (route, _) in enumerate(routed) if not route.hit]
        go = [index for index, (route, _) in enumerate(routed) if route.hit]
        scores: dict[int, Score] = {}
        if stay:
            picked, wanted, compared = _pick(stay, prompts, targets, kept)
            answered = self._below.score(picked, wanted, compared, keep_head_input, passes)
            scores.update(zip(stay, answered, strict=True))
        if go:
            picked, wanted, compared = _pick(go, prompts, targets, kept)
            items = [routed[index][1] for index in go]
            answered = self._responder.score(
                self._model, picked, wanted, items, self._memory, compared, keep_head_input
            )
            scores.update(zip(go, answered, strict=True))
        return [scores[index] for index in range(len(prompts))]

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        """See :meth:`LanguageModel.generate`."""
        routed = self._routed(prompts)
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        stay = [index for index, (route, _) in enumerate(routed) if not route.hit]
        go = [index for index, (route, _) in enumerate(routed) if route.hit]
        texts: dict[int, str] = {}
        if stay:
            texts.update(zip(stay, self._below.generate(*_pick(stay, prompts, limits), **settings), strict=True))
        if go:
            picked, lengths = _pick(go, prompts, limits)
            items = [routed[index][1] for index in go]
            answered = self._responder.generate(self._model, picked, lengths, items, self._memory, settings)
            texts.update(zip(go, answered, strict=True))
        return [texts[index] for index in range(len(prompts))]

    @torch.no_grad()
    def perplexity(self, rows: Tensor) -> float:
        """Computes the perplexity of packed rows (R, L) of token ids, each routed on its first quarter.

        If an item answers a row, the responder scores the rest of it as text.
        """
        decode, cut = self._model.encoder.decode, max(rows.shape[1] // _ROUTED_SHARE, 1)
        prompts = [decode(row[:cut].tolist()) for row in rows]
        routed = self._routed(prompts)
        total, count = 0.0, 0
        for row, prompt, (route, item) in zip(rows, prompts, routed, strict=True):
            losses = losses_of_rows(self._model, row[None])
            if route.hit:
                rest = decode(row[cut:].tolist())
                [score] = self._responder.score(self._model, [prompt], [rest], [item], self._memory, [None], False)
                losses = torch.cat([losses[: cut - 1].cpu(), -torch.tensor(score.log_probs)])
            total, count = total + float(losses.double().sum()), count + len(losses)
        return math.exp(min(total / max(count, 1), 700.0))


def _pick(places: Sequence[int], *columns: Sequence[Any]) -> list[list[Any]]:
    return [[column[place] for place in places] for column in columns]


def _facts(requests: Sequence[EditRequest]) -> tuple[tuple[str | None, str], ...]:
    return tuple((request.subject, request.prompt) for request in requests)


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


def _with_free_ids(memory: Memory, beside: Memory) -> Memory:
    taken = [request.id for request in beside.all_requests]
    named = iter(named_requests(memory.all_requests, taken))
    return replace(memory, requests=tuple(tuple(next(named) for _ in requests) for requests in memory.requests))
