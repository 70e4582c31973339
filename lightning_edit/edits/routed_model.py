"""Scores and generates with a routed edit in front of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edit.edits.base import Scorer, losses_under
from lightning_edit.edits.memory import Memory
from lightning_edit.edits.routing import Responder, Router
from lightning_edit.edits.rows import check_prompts
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.scoring import Score
from lightning_edit.records import Route

_LONGEST_WORD = 16
"""Perplexity: maximum number of tokens that a row's prompt is extended by, to end with a word."""
_ROUTED_SHARE = 4
"""Perplexity: 1 / this share of a text row is its prompt, on which the row is routed."""


Decisions = dict[tuple[str, int], tuple[Route, int]]
"""The route and the closest memory item of a prompt under an edit."""


class RoutedModel:
    """Scores and generates by sending every prompt either to the layer below or to the responder.

    Args:
        below: Answers prompts that match no item.
        model: The base model.
        memory: The memory.
        router: Decides which item applies.
        responder: Answers for the item.
        rows: The edit that each prompt is under; None for one edit for all.
        decisions: Collects the decisions, by prompt and edit, so that each is made once.
    """

    def __init__(
        self,
        below: Scorer,
        model: LanguageModel,
        memory: Memory,
        router: Router,
        responder: Responder,
        rows: list[int] | None,
        decisions: Decisions,
    ) -> None:
        self._below, self._model, self._memory = below, model, memory
        self._router, self._responder, self._rows = router, responder, rows
        self._decisions = decisions

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """Returns the routing decision for each prompt."""
        return [route for route, _ in self._routed(prompts)]

    @torch.no_grad()
    def _routed(self, prompts: Sequence[str]) -> list[tuple[Route, int]]:
        """Returns the route of each prompt, and the index of its closest memory item; each prompt is decided once."""
        if self._rows is not None:
            check_prompts(prompts, self._rows)
        if not len(self._memory) or not prompts:
            return [(Route(0.0, False, is_probability=self._router.scores_are_probabilities), -1)] * len(prompts)
        questions = list(zip(prompts, self._rows or [0] * len(prompts), strict=True))
        undecided = [question for question in dict.fromkeys(questions) if question not in self._decisions]
        if undecided:
            self._decisions |= self._decide(undecided)
        return [self._decisions[question] for question in questions]

    def _decide(self, unique: Sequence[tuple[str, int]]) -> Decisions:
        """Routes prompts, each with the edit that it is under."""
        owners = torch.tensor(self._memory.owners)
        allowed = owners[None, :] == torch.tensor([row for _, row in unique])[:, None]
        match = self._router.match(self._model, [prompt for prompt, _ in unique], self._memory, allowed)
        scores = match.scores.masked_fill(~allowed.to(match.scores.device), -math.inf)
        best, items = scores.max(dim=1)
        hit = match.hits.gather(1, items[:, None])[:, 0] & (best > -math.inf)
        decisions = zip(best.tolist(), hit.tolist(), items.tolist(), strict=True)
        return {
            question: (self._route(*decision), decision[2])
            for question, decision in zip(unique, decisions, strict=True)
        }

    def _route(self, score: float, hit: bool, item: int) -> Route:
        probability = self._router.scores_are_probabilities
        if score == -math.inf:
            return Route(0.0, False, is_probability=probability)
        return Route(score, hit, self._memory.requests[item], probability)

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
        unmatched = [index for index, (route, _) in enumerate(routed) if not route.hit]
        matched = [index for index, (route, _) in enumerate(routed) if route.hit]
        scores: dict[int, Score] = {}
        if unmatched:
            picked, wanted, compared = _pick(unmatched, prompts, targets, kept)
            answered = self._below.score(picked, wanted, compared, keep_head_input, passes)
            scores.update(zip(unmatched, answered, strict=True))
        if matched:
            picked, wanted, compared = _pick(matched, prompts, targets, kept)
            items = [routed[index][1] for index in matched]
            answered = self._responder.score(
                self._model, picked, wanted, items, self._memory, compared, keep_head_input
            )
            scores.update(zip(matched, answered, strict=True))
        return [scores[index] for index in range(len(prompts))]

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        """See :meth:`LanguageModel.generate`."""
        routed = self._routed(prompts)
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        unmatched = [index for index, (route, _) in enumerate(routed) if not route.hit]
        matched = [index for index, (route, _) in enumerate(routed) if route.hit]
        texts: dict[int, str] = {}
        if unmatched:
            texts.update(
                zip(unmatched, self._below.generate(*_pick(unmatched, prompts, limits), **settings), strict=True)
            )
        if matched:
            picked, lengths = _pick(matched, prompts, limits)
            items = [routed[index][1] for index in matched]
            answered = self._responder.generate(self._model, picked, lengths, items, self._memory, settings)
            texts.update(zip(matched, answered, strict=True))
        return [texts[index] for index in range(len(prompts))]

    @torch.no_grad()
    def losses_of_rows(self, rows: Tensor) -> Tensor:
        """Computes the (R · (L - 1)) losses in nats of packed rows (R, L), each routed on its first quarter.

        If an item answers a row, the responder scores the rest of it, starting at the next word.
        """
        cuts = [self._cut(row.tolist()) for row in rows]
        routed = self._routed([self._decode(row[:cut].tolist()) for row, cut in zip(rows, cuts, strict=True)])
        # Each loss depends on earlier tokens only, so those of a routed row's prompt are among them.
        below = losses_under(self._below, self._model, rows).cpu().split(rows.shape[1] - 1)
        losses = []
        for row, cut, (route, item), of_row in zip(rows, cuts, routed, below, strict=True):
            if route.hit:
                prompt, rest = self._decode(row[:cut].tolist()), self._decode(row[cut:].tolist())
                [score] = self._responder.score(self._model, [prompt], [rest], [item], self._memory, [None], False)
                of_row = torch.cat([of_row[: cut - 1], -torch.tensor(score.log_probs)])
            losses.append(of_row)
        return torch.cat(losses)

    def _decode(self, ids: list[int]) -> str:
        return self._model.encoder.decode(ids)

    def _cut(self, ids: list[int]) -> int:
        """Returns the length of a row's prompt: a quarter, and the rest of the word that it ends in, if it is short."""
        quarter = max(len(ids) // _ROUTED_SHARE, 1)
        text = self._decode(ids[:quarter])
        # Beginnings are compared, because some tokenizers decode a first token without its space.
        for cut in range(quarter, min(quarter + _LONGEST_WORD, len(ids) - 1)):
            longer = self._decode(ids[: cut + 1])
            if longer[len(text) :][:1].isspace():
                return cut
            text = longer
        return quarter


def _pick(places: Sequence[int], *columns: Sequence[Any]) -> list[list[Any]]:
    return [[column[place] for place in places] for column in columns]
