"""Groups the rows of a matrix by the edit they belong to."""

from __future__ import annotations

import torch
from torch import Tensor


def slots_within_group(group: Tensor) -> Tensor:
    """Returns the (N) position of each row within its group, in order of appearance.

    Args:
        group: (N) int64 group of each row.
    """
    order = torch.argsort(group, stable=True)
    grouped = group[order]
    starts = torch.searchsorted(grouped, grouped)
    slots = torch.empty_like(group)
    slots[order] = torch.arange(len(group), device=group.device) - starts
    return slots


def pack_rows(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """Packs rows by group, padded with zeros: out[g, slot] is the slot-th row of group g.

    Args:
        rows: (N, D).
        group: (N) int64 in [0, groups).
        groups: Number of groups G.

    Returns:
        (G, T, D) with T the size of the largest group (at least one).
    """
    slots = slots_within_group(group)
    width = int(slots.max()) + 1 if len(slots) else 1
    packed = rows.new_zeros(groups, width, rows.shape[1])
    return packed.index_put((group, slots), rows)
