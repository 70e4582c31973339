"""MELO's clusters of keys, and the LoRA blocks that they choose (Yu et al. 2024, arXiv 2312.11795)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_edit.edits import Match, Memory, Router, SiteResponder, StackedFactors
from lightning_edit.edits.hidden_states import distances, prompt_states
from lightning_edit.edits.hooks import Term
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchRows

KEY, CENTRE, RADIUS = "key", "centre", "radius"
FORGOTTEN = -1.0
"""Radius of a key that a conflict pushed out of its cluster."""


class Clusters(Router):
    """Routes a prompt to the closest cluster of keys, if it lies within its radius, and there to the closest key.

    A new key at distance d from the closest centre begins a cluster beyond ε₀ + ε. Closer, with the cluster's target,
    it joins: the centre moves to the mean of the keys, and the radius covers them all (at least ε₀). With another
    target the cluster shrinks to d/2 - 1e-5 and forgets the keys outside, and the new key begins a cluster of radius
    d/2 + 1e-5.

    Args:
        site: Name of the site whose output is the key.
        radius: ε₀, the radius of a new cluster.
    """

    def __init__(self, site: str, radius: float) -> None:
        super().__init__()
        self.site, self.radius = site, radius

    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """See :meth:`Router.match`; of the closest cluster's keys, closeness is the negative distance."""
        states = prompt_states(model, prompts, self.site, "output")
        radii = memory.tensors[RADIUS].to(states.device)
        unusable = (radii == FORGOTTEN) | ~allowed.to(states.device)
        to_centre = distances(states, memory.tensors[CENTRE]).masked_fill(unusable, math.inf)
        closest = to_centre.min(dim=1, keepdim=True).values
        to_key = distances(states, memory.tensors[KEY]).masked_fill(to_centre > closest, math.inf)
        return Match(-to_key, to_centre <= radii)

    def join(self, first: Memory, second: Memory) -> Memory:
        """See :meth:`Router.join`."""
        for place in range(len(second)):
            item = second.select([place])
            first = self._with_last_item_clustered(super().join(self.without_replaced(first, item), item))
        return first

    def _with_last_item_clustered(self, memory: Memory) -> Memory:
        """Puts the last item, which is new, into a cluster."""
        count = len(memory) - 1
        keys, centres, radii = (memory.tensors[name].clone() for name in (KEY, CENTRE, RADIUS))
        distance = distances(keys[-1:], centres[:count])[0].masked_fill(radii[:count] == FORGOTTEN, math.inf)
        if not count or float(distance.min()) > self.radius + float(radii[int(distance.argmin())]):
            return memory
        nearest, closest = int(distance.argmin()), float(distance.min())
        members = (centres == centres[nearest]).all(1) & (radii != FORGOTTEN)
        members[-1] = False
        if memory.requests[nearest][0].target == memory.requests[-1][0].target:
            members[-1] = True
            centres[members] = keys[members].mean(0)
            radii[members] = max(self.radius, float((keys[members] - centres[nearest]).norm(dim=1).max()))
        else:
            outside = (keys - centres[nearest]).norm(dim=1) > closest / 2 - 1e-5
            radii[members] = closest / 2 - 1e-5
            radii[members & outside] = FORGOTTEN
            radii[-1] = closest / 2 + 1e-5
        return memory.with_tensors(**{CENTRE: centres, RADIUS: radii})

    def reset(self, memory: Memory) -> Memory:
        """See :meth:`Router.reset`."""
        radii = torch.full_like(memory.tensors[RADIUS], self.radius)
        return memory.with_tensors(**{CENTRE: memory.tensors[KEY], RADIUS: radii})


class BlockResponder(SiteResponder):
    """Applies the LoRA block of the item that a row was routed to.

    Args:
        sites: Names of the adapted sites.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = list(sites)

    def terms(
        self, model: LanguageModel, memory: Memory, items: Tensor, batch: BatchRows, repeats: int
    ) -> Mapping[str, Term]:
        """See :meth:`SiteResponder.terms`."""
        return {
            site: StackedFactors(memory.tensors[f"a/{site}"], memory.tensors[f"b/{site}"]).term(items, repeats)
            for site in self.sites
        }
