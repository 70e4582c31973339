"""GRACE: General Retrieval Adaptors for Continual Editing (Hartvigsen et al. 2023, arXiv 2211.11031)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.tuning import Tuned, TuningSettings, names_of, problems_of, tune, tuning_texts
from lightning_edit.edits import EditSequence, Match, Memory, RoutedChanges, Router, SiteResponder
from lightning_edit.edits.hidden_states import distances, prompt_states
from lightning_edit.edits.hooks import Term
from lightning_edit.edits.routed import named_requests
from lightning_edit.edits.rows import split_rows
from lightning_edit.models.cached_texts import TextBatch
from lightning_edit.models.language_model import BatchRows, LanguageModel
from lightning_edit.models.layer_map import EditSite

Replacement = Literal["replace_prompt", "replace_last", "replace_all"]
KEY, RADIUS, VALUE = "key", "radius", "value"
GRACE_TUNING = TuningSettings(steps=100, learning_rate=1.0, skip_below=0.0, stop_below=0.0)
"""The authors' settings."""
ABSORBED = -1.0
"""Radius of a key that another one with the same target answers for."""


class Codebook(Router):
    """Routes a prompt to the closest key, if it lies within that key's deferral radius.

    A new key at distance d from the closest one is added beyond ε₀ + εᵢ. Closer, with the same target, εᵢ grows to d
    and the new key is not needed; with another target both keep to their halves, εᵢ = d/2 - 1e-5 and ε_new = d/2.

    Args:
        site: Name of the site whose input is the key.
        radius: ε₀, the radius of a new key.
    """

    def __init__(self, site: str, radius: float) -> None:
        super().__init__()
        self.site, self.radius = site, radius

    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """See :meth:`Router.match`; closeness is the negative distance."""
        distance = distances(prompt_states(model, prompts, self.site, "input"), memory.tensors[KEY])
        radii = memory.tensors[RADIUS].to(distance)
        return Match((-distance).masked_fill(radii == ABSORBED, -math.inf), distance <= radii)

    def join(self, first: Memory, second: Memory) -> Memory:
        """See :meth:`Router.join`."""
        for place in range(len(second)):
            first = self._with(first, second.select([place]))
        return first

    def _with(self, memory: Memory, item: Memory) -> Memory:
        joined = super().join(memory, item)
        radii, count = joined.tensors[RADIUS].clone(), len(joined) - 1
        distance = distances(joined.tensors[KEY][-1:], joined.tensors[KEY][:count])[0]
        distance = distance.masked_fill(radii[:count].to(distance) == ABSORBED, math.inf)
        if count and float(distance.min()) <= self.radius + float(radii[int(distance.argmin())]):
            nearest, closest = int(distance.argmin()), float(distance.min())
            if joined.requests[nearest][0].target == joined.requests[-1][0].target:
                radii[nearest] = max(closest, float(radii[nearest]))
                radii[-1] = ABSORBED
            else:
                radii[nearest], radii[-1] = closest / 2 - 1e-5, closest / 2
        return joined.with_tensors(**{RADIUS: radii})

    def reset(self, memory: Memory) -> Memory:
        """See :meth:`Router.reset`."""
        return memory.with_tensors(**{RADIUS: torch.full_like(memory.tensors[RADIUS], self.radius)})


class ValueResponder(SiteResponder):
    """Puts an item's value in place of a site's output.

    Args:
        site: Name of the site.
        replacement: At which positions: see :class:`GRACE`.
    """

    def __init__(self, site: str, replacement: Replacement) -> None:
        super().__init__()
        self.site, self.replacement = site, replacement

    def terms(
        self, model: LanguageModel, memory: Memory, items: Tensor, batch: BatchRows, repeats: int
    ) -> Mapping[str, Term]:
        """See :meth:`SiteResponder.terms`."""
        values = memory.tensors[VALUE].to(model.device)[items]
        passes = itertools.count()

        def term(x: Tensor, output: Tensor) -> Tensor:
            split = split_rows(output, len(items), repeats)
            continues = batch.decoding and next(passes) > 0
            mask = self._positions(batch, split.shape[1], continues)
            times = len(split) // len(items)
            repeated, where = values.repeat_interleave(times, 0), mask.repeat_interleave(times, 0)
            return replacing(split, repeated, where).reshape(output.shape)

        return {self.site: term}

    def _positions(self, batch: BatchRows, length: int, continues: bool) -> Tensor:
        """(R, length) bool: the replaced columns; ``continues`` for passes over new tokens of a generation."""
        everywhere = torch.ones(len(batch.indices), length, dtype=torch.bool, device=batch.prompt_ends.device)
        if self.replacement == "replace_all":
            return everywhere
        if self.replacement == "replace_last":
            return batch.after_prompt(length)
        if continues:
            return ~everywhere
        return torch.arange(length, device=everywhere.device) <= batch.prompt_ends[:, None]


def replacing(output: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """What to add to (R, S, D) outputs to put (R, D) values in their place at (R, S) positions."""
    return torch.where(positions[..., None], values[:, None] - output.to(values.dtype), 0.0)


class GRACE(Editor):
    """GRACE: a codebook at one layer; a prompt close to a remembered one gets a trained value in place of its output.

    The key k is the site's input at the prompt's last token, the value v is trained by Adam on -log p(target | prompt)
    with v in place of the site's output. A prompt whose state lies within the radius ε of its closest key gets that
    key's value; all others are answered by the unedited model. (The authors' code keys on the first target token, which
    free generation cannot; here keys are those of the prompt alone. Where a new key joins one with the same target, the
    authors train the old value further; here it stays.)

    Args:
        site: The layer (its MLP output projection) or the linear module whose output is replaced. The authors take
            h[35].mlp.c_fc of GPT-2 XL.
        radius: ε₀, the deferral radius of a new key (the authors' 1).
        replacement: "replace_prompt" replaces the output at all tokens of the prompt, "replace_last" from its last
            token on, "replace_all" everywhere.
        start: "cold" begins with values drawn from [0, 1), "warm" with the site's own output.
        tuning: How values are trained. The authors take 100 steps with a learning rate of 1.
        seed: Seed of a cold start.
        contradictions: What to do with requests of one edit that have the same prompt and another target.
    """

    capabilities = Capabilities(depends=False, needs_grad=True, mergeable=False)

    def __init__(
        self,
        site: int | str = -5,
        radius: float = 1.0,
        replacement: Replacement = "replace_prompt",
        start: Literal["cold", "warm"] = "cold",
        tuning: TuningSettings = GRACE_TUNING,
        seed: int = 0,
        contradictions: Contradictions = "last",
    ) -> None:
        super().__init__()
        ranges.above(0, "editor", radius=radius)
        ranges.one_of(get_args(Replacement), "editor", replacement=replacement)
        ranges.one_of(("cold", "warm"), "editor", start=start)
        self.site, self.radius, self.tuning, self.seed = site, radius, tuning, seed
        self.replacement: Replacement = replacement
        self.start, self.contradictions = start, contradictions

    def edit_site(self, model: LanguageModel) -> EditSite:
        """The site in ``model``."""
        return model.layer_map.sites([self.site])[0]

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.edit_site(model)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        site = self.edit_site(model)
        flat = [[request] for group in groups for request in group]
        keys = prompt_states(model, [request.prompt for [request] in flat], site.name, "input").float()
        values = _Values(self, site, self._initial(model, site, flat))
        failed = tune(model, tuning_texts(model, flat, self.tuning), names_of(flat), values, site.layer, self.tuning)
        trained = torch.stack([value.detach() for [value] in values.parameters])
        router, memories, start = Codebook(site.name, self.radius), [], 0
        for group in groups:
            good = [start + place for place in range(len(group)) if start + place not in failed]
            tensors = {KEY: keys[good], VALUE: trained[good], RADIUS: torch.full((len(good),), self.radius)}
            requests = tuple((request,) for request in named_requests([flat[place][0] for place in good]))
            items = Memory(requests, tensors)
            memories.append(router.join(items.select([]), items))
            start += len(group)
        changes = RoutedChanges(memories, router, ValueResponder(site.name, self.replacement))
        return GroupChanges(changes, problems_of(failed, flat))

    def _initial(self, model: LanguageModel, site: EditSite, requests: Groups) -> Tensor:
        """(N, fan_out) values to begin with."""
        if self.start == "warm":
            return prompt_states(model, [request.prompt for [request] in requests], site.name, "output").float()
        value = torch.rand(site.fan_out, generator=torch.Generator().manual_seed(self.seed))
        return value.to(site.weight.device).expand(len(requests), -1)


class _Values(Tuned):
    """A value for each edit."""

    def __init__(self, editor: GRACE, site: EditSite, initial: Tensor) -> None:
        super().__init__([[value.clone().requires_grad_()] for value in initial])
        self.site, self.responder = site.name, ValueResponder(site.name, editor.replacement)

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        values = torch.stack(
            [self.parameters[edit][0] for edit, places in rows for _ in range(places.stop - places.start)]
        )
        ends = BatchRows(list(range(len(values))), batch.tokens.answer_mask.int().argmax(1))

        def term(x: Tensor, output: Tensor) -> Tensor:
            split = split_rows(output, len(values), 1)
            where = self.responder._positions(ends, split.shape[1], continues=False)
            return replacing(split, values, where).reshape(output.shape)

        return {self.site: term}
