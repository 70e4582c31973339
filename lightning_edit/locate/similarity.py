"""Whether related facts are kept in the same place: KnowEdit's relative similarity of located knowledge (RSim)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.locate.tracing import ROLES, Trace


@dataclass(frozen=True)
class GroupSimilarity:
    """How alike the facts of a group are located.

    Args:
        facts: Number of facts.
        similarity: Mean similarity of two of them.
        relative: :func:`relative_similarity` to that of two facts of all groups.
    """

    facts: int
    similarity: float
    relative: float


def profile(trace: Trace, kind: str) -> Tensor:
    """(R · L) where a fact is kept: the indirect effect of each layer at each of the R roles of tokens.

    Effects of tokens with the same role are averaged, so that prompts of different lengths can be compared; a role that
    no token has counts as 0.

    Args:
        trace: The fact.
        kind: What is put back: "state", "mlp" or "attention".
    """
    effects, roles = trace.effects(kind), trace.roles()
    rows = [[place for place, name in enumerate(roles) if name == role] for role in ROLES]
    zero = torch.zeros_like(effects[0])
    return torch.cat([effects[places].mean(0) if places else zero for places in rows])


def mean_similarity(profiles: Tensor) -> float:
    """Mean cosine of two different rows of (N, D) profiles; NaN for fewer than two."""
    unit = torch.nn.functional.normalize(profiles.double(), dim=1)
    count = len(unit)
    if count < 2:
        return float("nan")
    total = (unit @ unit.T).sum() - (unit * unit).sum()
    return float(total / (count * (count - 1)))


def relative_similarity(similarity: float, of_all: float) -> float:
    """RSim = max((Sim_group - Sim_all) / (1 - Sim_all), 0) (Zhang et al. 2024, arXiv 2401.01286).

    It is 1 where the facts of a group are located in one place, and 0 where they are no more alike than any two facts.

    Args:
        similarity: Mean similarity of the facts of a group.
        of_all: That of all facts.

    Example:
        >>> relative_similarity(0.9, 0.8)
        0.5
    """
    return round(max((similarity - of_all) / max(1 - of_all, 1e-12), 0.0), 12)


def group_similarities(
    traces: Sequence[Trace], groups: Sequence[str], kind: str
) -> tuple[float, dict[str, GroupSimilarity]]:
    """Mean similarity of two of all facts, and each group's; groups of one fact are left out.

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
