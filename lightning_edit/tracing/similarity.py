"""Similarity of the locations of related facts: KnowEdit's relative similarity (RSim)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.tracing.causal import ROLES, Trace


@dataclass(frozen=True)
class GroupSimilarity:
    """Similarity of the locations of a group's facts.

    Args:
        facts: Number of facts.
        similarity: Mean pairwise similarity.
        relative: :func:`relative_similarity` to the mean pairwise similarity of all facts.
    """

    facts: int
    similarity: float
    relative: float


def profile(trace: Trace, kind: str) -> Tensor:
    """Returns the location (R · L) of a fact: the indirect effect of each layer at each of R token roles.

    Effects of tokens with the same role are averaged, so that prompts of different lengths can be compared; a role that
    no token has counts as 0.

    Args:
        trace: The fact.
        kind: What is restored: "state", "mlp" or "attention".
    """
    effects, roles = trace.effects(kind), trace.roles()
    rows = [[place for place, name in enumerate(roles) if name == role] for role in ROLES]
    zero = torch.zeros_like(effects[0])
    return torch.cat([effects[places].mean(0) if places else zero for places in rows])


def mean_similarity(profiles: Tensor) -> float:
    """Computes the mean pairwise cosine of (N, D) profiles; NaN for fewer than two."""
    unit = torch.nn.functional.normalize(profiles.double(), dim=1)
    count = len(unit)
    if count < 2:
        return float("nan")
    total = (unit @ unit.T).sum() - (unit * unit).sum()
    return float(total / (count * (count - 1)))


def relative_similarity(similarity: float, of_all: float) -> float:
    """Computes RSim = max((Sim_group - Sim_all) / (1 - Sim_all), 0) (Zhang et al. 2024, arXiv 2401.01286).

    It is 1 if the facts of a group have one location, and 0 if they are no more similar than any two facts.

    Args:
        similarity: Mean similarity of the facts of a group.
        of_all: Mean similarity of all facts.

    Example:
        >>> relative_similarity(0.9, 0.8)
        0.5
    """
    return round(max((similarity - of_all) / max(1 - of_all, 1e-12), 0.0), 12)


def group_similarities(
    traces: Sequence[Trace], groups: Sequence[str], kind: str
) -> tuple[float, dict[str, GroupSimilarity]]:
    """Computes the mean pairwise similarity of all facts and of each group with several facts.

    Args:
        traces: The facts.
        groups: The group of each.
        kind: See :func:`profile`.
    """
    profiles = torch.stack([profile(trace, kind) for trace in traces])
    of_all = mean_similarity(profiles)
    result = {}
    for name in dict.fromkeys(groups):
        rows = [place for place, group in enumerate(groups) if group == name]
        if len(rows) > 1:
            similarity = mean_similarity(profiles[rows])
            result[name] = GroupSimilarity(len(rows), similarity, relative_similarity(similarity, of_all))
    return of_all, result
