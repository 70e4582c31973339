"""Routers and responders: which memory item applies to a prompt, and who answers for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor, nn

from lightning_edit.edits.memory import Memory, with_free_ids
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.scoring import Score
from lightning_edit.records import EditRequest


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

    scores_are_probabilities = False
    """Whether the scores of a match are probabilities of being in scope, so that their threshold can be studied."""

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
        kept = first.select(self.places_kept(first, second))
        return Memory.concatenated(kept, with_free_ids(second, kept))

    def places_kept(self, first: Memory, second: Memory) -> list[int]:
        """Returns the places of the first memory's items that no item of the second replaces."""
        facts = {_facts(requests) for requests in second.requests}
        return [place for place, requests in enumerate(first.requests) if _facts(requests) not in facts]

    def rebuilt(self, memory: Memory, places: Sequence[int]) -> Memory:
        """Joins some items of a memory again, as if there had never been others."""
        original = self.reset(memory)
        singles = [original.select([place]) for place in places]
        return reduce(self.join, singles) if singles else original.select([])

    def without_replaced(self, first: Memory, second: Memory) -> Memory:
        """Returns the first memory without the items that the second replaces, and without their traces in others."""
        kept = self.places_kept(first, second)
        return first if len(kept) == len(first) else self.rebuilt(first, kept)

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


def _facts(requests: Sequence[EditRequest]) -> tuple[tuple[str | None, str], ...]:
    return tuple((request.subject, request.prompt) for request in requests)
