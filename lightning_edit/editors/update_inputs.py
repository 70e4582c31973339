"""Intermediate data of locate-then-edit methods: the requests of several edits, their keys, values and changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.editors.prompts import Contexts
from lightning_edit.editors.value_search import ValueResult
from lightning_edit.edits import EditSequence, StackedFactors
from lightning_edit.edits.hooks import added_terms
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.passes import BatchContext, BatchRows
from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class Reading:
    """Activations at the last subject token, for N requests.

    Args:
        mean: (N, M) float64 mean over the contexts.
        bare: (N, M) float64 for the bare prompt.
    """

    mean: Tensor
    bare: Tensor

    @classmethod
    def of(cls, read: Tensor, contexts: Contexts) -> Reading:
        """Computes the reading from (N, T, M) values in T contexts."""
        return cls(torch.einsum("t,ntm->nm", contexts.weights.to(read.device), read), read[:, 0])


@dataclass(frozen=True)
class UpdateInputs:
    """The requests of several edits, with their searched values.

    Args:
        requests: (N) requests of all edits.
        group_of: (N) edit of each request.
        values: (N) search result of each request.
        groups: Number of edits B.
        sites: The sites to edit, lowest layer first.
        contexts: The contexts.
        after: The earlier edits.
    """

    requests: list[EditRequest]
    group_of: list[int]
    values: list[ValueResult]
    groups: int
    sites: list[EditSite]
    contexts: Contexts
    after: EditSequence

    def earlier_keys(self, site: EditSite) -> Tensor | None:
        """Returns the (M, M) float64 Σ k kᵀ over earlier edits' keys at a site; None without any."""
        gram = self.after.state.get(keys_name(site))
        return None if gram is None else gram.to(site.weight.device)

    def members(self, group: int) -> list[int]:
        """Returns the indices of an edit's requests."""
        return [place for place, edit in enumerate(self.group_of) if edit == group]

    def hooks(self, model: LanguageModel, partial: Mapping[str, StackedFactors], texts_each: int) -> BatchContext:
        """Returns a batch context that applies to every text its edit's changes so far."""

        def around(batch: BatchRows) -> AbstractContextManager[object]:
            rows = torch.tensor([self.group_of[index // texts_each] for index in batch.indices], device=model.device)
            return added_terms(model, {site: changes.term(rows) for site, changes in partial.items()})

        return around

    def stacked(self, factors: Sequence[tuple[Tensor, Tensor]]) -> StackedFactors:
        """Stacks one pair of factors per edit, (M, n) and (n, D), padded to the same rank.

        The result is float32, or float64 for a float64 model.
        """
        rank = max(a.shape[1] for a, _ in factors)
        a = torch.stack([torch.nn.functional.pad(a, (0, rank - a.shape[1])) for a, _ in factors])
        b = torch.stack([torch.nn.functional.pad(b, (0, 0, 0, rank - b.shape[0])) for _, b in factors])
        dtype = next(iter(self.values[0].initial.values())).dtype
        return StackedFactors(a.to(dtype), b.to(dtype))


def keys_name(site: EditSite) -> str:
    """Returns the name of a site's keys in the state that edits keep for later edits."""
    return f"keys/{site.name}"


def no_change(edits: int, site: EditSite) -> StackedFactors:
    """Returns zero changes for all edits."""
    device = site.weight.device
    return StackedFactors(
        torch.zeros(edits, site.fan_in, 1, device=device), torch.zeros(edits, 1, site.fan_out, device=device)
    )


def scatter_edits(changes: StackedFactors, places: list[int], edits: int) -> StackedFactors:
    """Places changes among those of ``edits`` edits; the other edits change nothing."""
    if len(changes) == edits:
        return changes
    a, b = (factor.new_zeros(edits, *factor.shape[1:]) for factor in (changes.a, changes.b))
    a[places], b[places] = changes.a, changes.b
    return StackedFactors(a, b)
