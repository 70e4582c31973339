"""GRACE's codebook of keys with deferral radii and values (Hartvigsen et al. 2023, arXiv 2211.11031)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_edit.edits import Match, Memory, Router, SiteResponder
from lightning_edit.edits.hidden_states import distances, prompt_states
from lightning_edit.edits.hooks import Term
from lightning_edit.edits.rows import split_rows
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchRows

Replacement = Literal["replace_prompt", "replace_last", "replace_all"]
KEY, RADIUS, VALUE = "key", "radius", "value"
ABSORBED = -1.0
"""Radius of a key whose prompts another key with the same target answers."""


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
            item = second.select([place])
            first = self._with(self.without_replaced(first, item), item)
        return first

    def _with(self, memory: Memory, item: Memory) -> Memory:
        """Adds an item."""
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
        replacement: Which positions: see :class:`lightning_edit.editors.GRACE`.
    """

    def __init__(self, site: str, replacement: Replacement) -> None:
        super().__init__()
        self.site, self.replacement = site, replacement
        self.needs_prompt_end = replacement != "replace_all"

    def terms(
        self, model: LanguageModel, memory: Memory, items: Tensor, batch: BatchRows, repeats: int
    ) -> Mapping[str, Term]:
        """See :meth:`SiteResponder.terms`."""
        values = memory.tensors[VALUE].to(model.device)[items]
        passes = itertools.count()

        def term(x: Tensor, output: Tensor) -> Tensor:
            split = split_rows(output, len(items), repeats)
            continues = batch.decoding and next(passes) > 0
            mask = self.positions(batch, split.shape[1], continues)
            times = len(split) // len(items)
            # With a device map, the site may be on another device.
            repeated, where = (each.to(output.device).repeat_interleave(times, 0) for each in (values, mask))
            return replacing(split, repeated, where).reshape(output.shape)

        return {self.site: term}

    def positions(self, batch: BatchRows, length: int, continues: bool) -> Tensor:
        """Selects the positions whose output is replaced.

        Args:
            batch: The rows of the forward pass.
            length: Positions of the forward pass.
            continues: Whether the pass reads new tokens of a generation alone.

        Returns:
            (R, length) bool.
        """
        everywhere = torch.ones(len(batch.indices), length, dtype=torch.bool, device=batch.prompt_ends.device)
        if self.replacement == "replace_all":
            return everywhere
        if self.replacement == "replace_last":
            return batch.after_prompt(length)
        if continues:
            return ~everywhere
        return torch.arange(length, device=everywhere.device) <= batch.prompt_ends[:, None]


def replacing(output: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Computes the term that puts values in the place of outputs at some positions.

    Args:
        output: (R, S, D) outputs of a site.
        values: (R, D) values.
        positions: (R, S) bool.

    Returns:
        (R, S, D) what to add to the outputs, in the values' dtype; zero at other positions.
    """
    return torch.where(positions[..., None], values[:, None] - output.to(values.dtype), 0.0)
