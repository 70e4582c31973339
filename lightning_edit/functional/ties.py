"""Merging of weight changes by TIES (Yadav et al. 2023, arXiv 2306.01708)."""

from __future__ import annotations

import torch
from torch import Tensor


def ties_merge(changes: Tensor, density: float) -> Tensor:
    """Trims each change to its largest elements, elects a sign for each element and averages those that agree.

    With Δᵢ trimmed to the share ``density`` of its elements of largest magnitude, s = sign(Σᵢ Δᵢ) (zero counts as
    positive), the merged element is the mean of the Δᵢ ≠ 0 with sign s, or zero without any.

    Args:
        changes: (K, …) changes of one weight.
        density: Share of the elements of each change that is kept.

    Returns:
        (…) the merged change.
    """
    flat = changes.flatten(1)
    kept = int(density * flat.shape[1])
    trimmed = torch.zeros_like(flat)
    places = flat.abs().topk(kept, dim=1).indices
    trimmed.scatter_(1, places, flat.gather(1, places))
    positive = trimmed.sum(0) >= 0
    agree = torch.where(positive, trimmed > 0, trimmed < 0)
    merged = (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)
    return merged.view(changes.shape[1:])
