"""The requests of several edits on their way through a locate-then-edit method, and what is read and made for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.editors.prompts import Contexts
from lightning_edit.editors.value_search import FoundValue
from lightning_edit.edits import EditSequence, StackedFactors, WeightEdit
from lightning_edit.edits.hooks import added_terms
from lightning_edit.models.language_model import ChunkContext, LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class Reading:
    """What a place sees at the last subject token, for N requests.

    Args:
        mean: (N, M) float64 mean over the contexts.
        bare: (N, M) float64 for the prompt by itself.
    """

    mean: Tensor
    bare: Tensor

    @classmethod
    def of(cls, read: Tensor, contexts: Contexts) -> Reading:
        """That of (N, T, M) values in T contexts."""
        return cls(torch.einsum("t,ntm->nm", contexts.weights.to(read.device), read), read[:, 0])


@dataclass(frozen=True)
class Job:
    """The requests of several edits, with the values that were found for them.

    Args:
        requests: (N) requests of all edits.
        group_of: (N) edit that each belongs to.
        values: (N) what was found for each.
        groups: Number of edits B.
        sites: The sites to edit, lowest layer first.
        contexts: The contexts.
        after: Earlier edits that these are made on top of.
    """

    requests: list[EditRequest]
    group_of: list[int]
    values: list[FoundValue]
    groups: int
    sites: list[EditSite]
    contexts: Contexts
    after: EditSequence

    def earlier_keys(self, site: EditSite) -> Tensor:
        """(M, E) float64 the keys that earlier edits keep at a site."""
        kept = [
            edit.keys[site.name].double()
            for edit in self.after.edits
            if isinstance(edit, WeightEdit) and site.name in edit.keys
        ]
        device = site.weight.device
        empty = torch.zeros(0, site.fan_in, dtype=torch.float64, device=device)
        return torch.cat([empty, *(keys.to(device) for keys in kept)]).T

    def members(self, group: int) -> list[int]:
        """Places of an edit's requests."""
        return [at for at, own in enumerate(self.group_of) if own == group]

    def hooks(self, model: LanguageModel, partial: Mapping[str, StackedFactors], texts_each: int) -> ChunkContext:
        """Context of a padded batch in which every text runs under its edit's changes so far."""

        def around(chunk: list[int]) -> AbstractContextManager[object]:
            rows = torch.tensor([self.group_of[index // texts_each] for index in chunk], device=model.device)
            return added_terms(model, {site: changes.term(rows) for site, changes in partial.items()})

        return around

    def stacked(self, factors: Sequence[tuple[Tensor, Tensor]]) -> StackedFactors:
        """One pair of factors for each edit, (M, n) and (n, D), padded to the same rank.

        They are rounded to float32, or kept in float64 for a float64 model.
        """
        rank = max(a.shape[1] for a, _ in factors)
        a = torch.stack([torch.nn.functional.pad(a, (0, rank - a.shape[1])) for a, _ in factors])
        b = torch.stack([torch.nn.functional.pad(b, (0, 0, 0, rank - b.shape[0])) for _, b in factors])
        dtype = next(iter(self.values[0].initial.values())).dtype
        return StackedFactors(a.to(dtype), b.to(dtype))


def among(changes: StackedFactors | None, places: list[int], count: int, site: EditSite) -> StackedFactors:
    """Changes at their places among those of ``count`` edits, the others of which change nothing."""
    if changes is None:
        device = site.weight.device
        return StackedFactors(
            torch.zeros(count, site.fan_in, 1, device=device), torch.zeros(count, 1, site.fan_out, device=device)
        )
    if len(changes) == count:
        return changes
    a, b = (own.new_zeros(count, *own.shape[1:]) for own in (changes.a, changes.b))
    a[places], b[places] = changes.a, changes.b
    return StackedFactors(a, b)


def not_finite(changes: Mapping[str, StackedFactors]) -> list[tuple[int, str]]:
    """The edits whose change is not finite, each with the first such site."""
    found: dict[int, str] = {}
    for site, factors in changes.items():
        finite = factors.a.isfinite().all(dim=(1, 2)) & factors.b.isfinite().all(dim=(1, 2))
        for number in (~finite).nonzero()[:, 0].tolist():
            found.setdefault(number, site)
    return list(found.items())


def without(changes: StackedFactors, number: int) -> StackedFactors:
    """Changes of which that of one edit is nothing."""
    a, b = changes.a.clone(), changes.b.clone()
    a[number], b[number] = 0, 0
    return StackedFactors(a, b)
