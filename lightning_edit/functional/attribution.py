"""Selection of knowledge neurons (Dai et al. 2022, arXiv 2104.08696)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def chosen_neurons(scores: Tensor, threshold: float, prompt_share: float, min_neurons: int, max_neurons: int) -> Tensor:
    """Selects the neurons whose attribution is high in enough prompts (section 3.2).

    In each prompt, the neurons above ``threshold`` times the largest attribution count. Those that count in at least
    ``prompt_share`` of the prompts are kept. If they are too few, the share is lowered one prompt at a time; if too
    many, it is raised as long as enough remain. If still too many remain, those with the largest mean attribution are
    kept.

    Args:
        scores: (P, L, M) attribution of each neuron of L layers in P prompts.
        threshold: Share of the largest attribution (the paper's 0.2).
        prompt_share: Share of prompts (the paper's 0.7).
        min_neurons: Smallest number of neurons wanted (the paper's 2).
        max_neurons: Largest number of neurons wanted (the paper's 5).

    Returns:
        (N, 2) int64 layer and index of each neuron, by decreasing mean attribution.
    """
    prompts = len(scores)
    counts = (scores > threshold * scores.flatten(1).amax(1)[:, None, None]).sum(0)
    # Guards against rounding errors: 0.56 of 25 prompts are 14.
    needed = max(math.ceil(prompt_share * prompts - 1e-9), 1)

    def left(prompts_needed: int) -> int:
        return int((counts >= prompts_needed).sum())

    while needed > 1 and left(needed) < min_neurons:
        needed -= 1
    while needed < prompts and left(needed) > max_neurons and left(needed + 1) >= min_neurons:
        needed += 1
    chosen = (counts >= needed).nonzero()
    means = scores.mean(0)[chosen[:, 0], chosen[:, 1]]
    return chosen[torch.argsort(means, descending=True, stable=True)[:max_neurons]]
