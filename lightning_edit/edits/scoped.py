"""Edits with an explicit memory: a prompt in the scope of a remembered request is answered by another model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_edit.components import build, describe
from lightning_edit.edits.base import TENSORS, Edit, Provenance, Scorer
from lightning_edit.edits.batch import EditBatch
from lightning_edit.errors import EditError, TokenizationError
from lightning_edit.functional.divergence import kl_divergence
from lightning_edit.models.counterfactual import CounterfactualModel, given
from lightning_edit.models.language_model import LanguageModel, Score
from lightning_edit.models.scope import ScopeClassifier
from lightning_edit.records import EditRequest, Route


@dataclass(frozen=True)
class Memory:
    """Remembered requests.

    Args:
        requests: The requests.
        keys: (M, …) what the scope classifier keeps of their prompts.
        owner: (M) int64 the edit that each belongs to.
    """

    requests: tuple[EditRequest, ...]
    keys: Tensor
    owner: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, requests: Sequence[EditRequest], owner: Sequence[int], classifier: ScopeClassifier) -> Memory:
        """Remembers requests; ones without an id, or with that of another one of the same edit, get one."""
        taken: dict[int, set[str]] = {}
        named = [
            replace(request, id=_free_id(request.id or str(at), taken.setdefault(own, set())))
            for at, (request, own) in enumerate(zip(requests, owner, strict=True))
        ]
        keys = classifier.remember([request.prompt for request in named])
        return cls(tuple(named), keys, torch.tensor(list(owner), device=keys.device))

    def select(self, places: Sequence[int]) -> Memory:
        """Some of the requests, as one edit's."""
        index = torch.tensor(list(places), dtype=torch.int64, device=self.keys.device)
        return Memory(tuple(self.requests[at] for at in places), self.keys[index], torch.zeros_like(index))


@dataclass(frozen=True)
class ScopeParts:
    """What routes and answers.

    Args:
        classifier: Rates whether a prompt is in the scope of a remembered request.
        counterfactual: Answers prompts given a request.
        threshold: Smallest probability that counts as in scope.
    """

    classifier: ScopeClassifier
    counterfactual: CounterfactualModel
    threshold: float

    def agree(self, other: ScopeParts) -> bool:
        """Whether these route and answer as others do."""
        if self is other:
            return True
        # Frozen parts are not among the weights: they are what the descriptions name.
        made = [
            (describe(parts.classifier), describe(parts.counterfactual), parts.threshold) for parts in (self, other)
        ]
        if made[0] != made[1]:
            return False
        mine, theirs = (
            {**parts.classifier.state_dict(prefix="classifier."), **parts.counterfactual.weights()}
            for parts in (self, other)
        )
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)


class ScopedEdit(Edit):
    """An explicit memory with a scope classifier and a counterfactual model (SERAC, Mitchell et al. 2022).

    For a prompt x the most likely request is e* = argmax_e p(x in the scope of e). If its probability reaches the
    threshold, the counterfactual model answers x given e*; otherwise the base model answers, untouched. The choice is
    made once for each prompt, on the prompt without its target, and holds for all of its tokens.

    Args:
        memory: What is remembered.
        parts: What routes and answers.
        provenance: Where the edit comes from.
    """

    kind = "scope"

    def __init__(self, memory: Memory, parts: ScopeParts, provenance: Provenance) -> None:
        super().__init__(provenance)
        self.memory, self.parts = memory, parts

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Names of the remembered requests."""
        return tuple(request.id for request in self.memory.requests)

    def add(self, requests: Sequence[EditRequest]) -> ScopedEdit:
        """The edit with more requests; one with the subject and prompt of a remembered request takes its place."""
        new = {_fact(request): request for request in requests}
        kept = [at for at, request in enumerate(self.memory.requests) if _fact(request) not in new]
        old = self.memory.select(kept)
        taken = {request.id for request in old.requests}
        named = [replace(request, id=_free_id(request.id or "0", taken)) for request in new.values()]
        added = Memory.of(named, [0] * len(named), self.parts.classifier)
        keys = self.parts.classifier.together(old.keys, added.keys) if kept else added.keys
        owner = torch.cat([old.owner, added.owner]) if kept else added.owner
        return self._with(Memory((*old.requests, *added.requests), keys, owner))

    def joined(self, other: Edit) -> ScopedEdit:
        """See :meth:`Edit.joined`: the memory of both, of which the later edit's requests count.

        Raises:
            EditError: If they route or answer by other weights.
        """
        if not (isinstance(other, ScopedEdit) and self.parts.agree(other.parts)):
            raise EditError(
                f"the edits {self.id} and {other.id} both stand in front of the model, and route or answer by other "
                "weights, so that they cannot be applied together; make both with one editor"
            )
        return self.add(other.memory.requests)

    def without(self, id: str) -> ScopedEdit:
        """The edit without one remembered request.

        Raises:
            EditError: If there is no such request.
        """
        if id not in self.request_ids:
            raise EditError(f"no request {id!r} in the memory; it has {list(self.request_ids)[:20]}")
        return self._with(self.memory.select([at for at, own in enumerate(self.request_ids) if own != id]))

    def _with(self, memory: Memory) -> ScopedEdit:
        return ScopedEdit(memory, self.parts, replace(self.provenance, requests=memory.requests))

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[Scorer]:
        """See :meth:`Edit.applied`; ``model`` itself is not edited, only what is yielded is."""
        model.check_base(self.provenance.fingerprint, "edit", self.provenance.base_name)
        self.parts.counterfactual.setup(model)
        yield _Routed(model, self.parts, self.memory, None)

    def merge(self, model: LanguageModel) -> None:
        """Refuses: a memory is not a change of the weights.

        Raises:
            EditError: Always.
        """
        raise EditError(
            "this edit cannot be merged: it is a memory of requests with a router in front of the model, not a change "
            "of the weights; ship the edit's folder and apply it"
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """See :meth:`Edit.write`."""
        tensors = {"memory": self.memory.keys}
        tensors.update({f"classifier/{name}": value for name, value in self.parts.classifier.state_dict().items()})
        own = self.parts.counterfactual.state_dict().items()
        tensors.update({f"counterfactual/{name}": value for name, value in own})
        save_file(
            {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, folder / TENSORS
        )
        return {
            "threshold": self.parts.threshold,
            "classifier": describe(self.parts.classifier),
            "counterfactual": describe(self.parts.counterfactual),
        }

    @classmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> ScopedEdit:
        """See :meth:`Edit.read`; the counterfactual model is completed when the edit is first applied to its base."""
        tensors = {name: value.clone() for name, value in load_file(folder / TENSORS).items()}
        classifier = build(details["classifier"], ScopeClassifier, str(folder))
        counterfactual = build(details["counterfactual"], CounterfactualModel, str(folder))
        classifier.load_state_dict(_under(tensors, "classifier/"))
        counterfactual.load_at_setup(_under(tensors, "counterfactual/"))
        count = len(provenance.requests)
        memory = Memory(provenance.requests, tensors["memory"], torch.zeros(count, dtype=torch.int64))
        parts = ScopeParts(classifier.eval(), counterfactual.eval(), float(details["threshold"]))
        return cls(memory, parts, provenance)


class ScopedBatch(EditBatch):
    """Independent memories, each for its own rows of a batch.

    Args:
        memory: The requests of all edits.
        parts: What routes and answers.
        provenances: One for each edit.
    """

    def __init__(self, memory: Memory, parts: ScopeParts, provenances: Sequence[Provenance]) -> None:
        super().__init__(provenances)
        self.memory, self.parts = memory, parts

    def __getitem__(self, index: int) -> ScopedEdit:
        """One of the edits, alone."""
        memory = self.memory.select((self.memory.owner == index).nonzero()[:, 0].tolist())
        return ScopedEdit(memory, self.parts, replace(self.provenances[index], requests=memory.requests))

    @contextmanager
    def applied(self, model: LanguageModel, rows: Sequence[int]) -> Iterator[Scorer]:
        """See :meth:`EditBatch.applied`."""
        self.check(model)
        self.parts.counterfactual.setup(model)
        yield _Routed(model, self.parts, self.memory, list(rows))


class _Routed:
    """Scores and generates with every prompt sent to the base or to the counterfactual model.

    Args:
        model: The base model.
        parts: What routes and answers.
        memory: What is remembered.
        rows: The edit that each prompt is under; None where there is one edit for all.
    """

    def __init__(self, model: LanguageModel, parts: ScopeParts, memory: Memory, rows: list[int] | None) -> None:
        self._model, self._parts, self._memory, self._rows = model, parts, memory, rows

    @torch.no_grad()
    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """Who answers each prompt."""
        if self._rows is not None and len(prompts) != len(self._rows):
            raise EditError(f"{len(prompts)} prompts, but the edits were applied to {len(self._rows)} rows")
        if not len(self._memory.requests) or not prompts:
            return [Route(0.0, False)] * len(prompts)
        unique = list(dict.fromkeys(prompts))
        place = {prompt: at for at, prompt in enumerate(unique)}
        similarity = self._parts.classifier.log_similarity(unique, self._memory.keys)
        similarity = similarity[[place[prompt] for prompt in prompts]]
        if self._rows is not None:
            foreign = self._memory.owner[None, :] != torch.tensor(self._rows, device=similarity.device)[:, None]
            similarity = similarity.masked_fill(foreign, float("-inf"))
        best, which = similarity.exp().max(dim=1)
        return [
            Route(probability, probability >= self._parts.threshold, self._memory.requests[at])
            for probability, at in zip(best.tolist(), which.tolist(), strict=True)
        ]

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
    ) -> list[Score]:
        routes = self.routes(prompts)
        scores: dict[int, Score] = {}
        kept = list(references) if references is not None else [None] * len(prompts)
        stay = [at for at, route in enumerate(routes) if not route.hit]
        asked, answers, compared = _picked(stay, prompts, targets, kept)
        own = self._model.score(asked, answers, compared, keep_head_input)
        scores.update(zip(stay, own, strict=True))
        go = [at for at, route in enumerate(routes) if route.hit]
        asked, answers, compared = _picked(go, self._asked(prompts, routes), targets, kept)
        same = self._parts.counterfactual.same_tokens(self._model)
        with self._parts.counterfactual.speaking(self._model) as other:
            if other is self._model:
                answered = other.score(asked, answers, compared, keep_head_input)
            elif same:
                answered = _compared(other.score(asked, answers, None, True), compared, other, self._model)
            else:
                answered = [
                    _translated(score, other, self._model, prompts[at], targets[at])
                    for at, score in zip(go, other.score(asked, answers), strict=True)
                ]
        scores.update(zip(go, answered, strict=True))
        return [replace(scores[at], route=route) for at, route in enumerate(routes)]

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        routes = self.routes(prompts)
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        texts: dict[int, str] = {}
        stay = [at for at, route in enumerate(routes) if not route.hit]
        if stay:
            own, own_limits = _picked(stay, prompts, limits)
            texts.update(zip(stay, self._model.generate(own, own_limits, **settings), strict=True))
        go = [at for at, route in enumerate(routes) if route.hit]
        if go:
            asked, asked_limits = _picked(go, self._asked(prompts, routes), limits)
            with self._parts.counterfactual.speaking(self._model) as other:
                texts.update(zip(go, other.generate(asked, asked_limits, **settings), strict=True))
        return [texts[at] for at in range(len(prompts))]

    @staticmethod
    def _asked(prompts: Sequence[str], routes: Sequence[Route]) -> list[str]:
        return [
            given(route.request, prompt) if route.hit and route.request else prompt
            for prompt, route in zip(prompts, routes, strict=True)
        ]


def _picked(places: Sequence[int], *columns: Sequence[Any]) -> list[list[Any]]:
    return [[column[at] for at in places] for column in columns]


def _compared(
    scores: Sequence[Score], references: Sequence[Tensor | None], other: LanguageModel, base: LanguageModel
) -> list[Score]:
    """Scores of another model with the base's tokens, with its divergence from what the base's head made of references.

    Rows that one of the two vocabularies is padded with are left out.
    """
    found = []
    for score, reference in zip(scores, references, strict=True):
        divergence = None
        if reference is not None and score.head_input is not None:
            before, after = base.logits_of(reference.to(base.device)), other.logits_of(score.head_input)
            size = min(before.shape[-1], after.shape[-1])
            divergence = float(kl_divergence(before[:, :size].float(), after[:, :size].float()).mean())
        found.append(replace(score, head_input=None, divergence=divergence))
    return found


def _translated(score: Score, other: LanguageModel, base: LanguageModel, prompt: str, target: str) -> Score:
    """A score in the base's tokens, by way of the text, for a model with a tokenizer of its own.

    The predicted text is read with the base's tokenizer, cut or padded (with -1) to the target's length; the target's
    log-probability is spread evenly over the base's tokens, so that its sum stays what it was. There is no divergence
    between distributions over different tokens.
    """
    expected = base.encoder.encode(prompt, target).target_ids
    text = other.encoder.decode(score.predicted_ids).strip()
    try:
        predicted = base.encoder.encode(prompt, text).target_ids
    except TokenizationError:
        # The base has no tokens for it, so it cannot be the target.
        predicted = ()
    padded = (*predicted, *([-1] * len(expected)))[: len(expected)]
    share = sum(score.log_probs) / max(len(expected), 1)
    return Score(expected, tuple(padded), (share,) * len(expected))


def _fact(request: EditRequest) -> tuple[str | None, str]:
    return request.subject, request.prompt


def _free_id(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
