"""The network that hypernetwork editors train: it maps normalised gradient factors to better ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_edit.functional.moments import Moments, merge_moments, moments, standard_deviation


class FactorStatistics(nn.Module):
    """Running mean and standard deviation of vectors, kept in float64 buffers so that a resumed run goes on exactly.

    Args:
        size: Length of the vectors D.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Adds vectors.

        Args:
            x: (N, D).
        """
        merged = merge_moments(Moments(self.count, self.mean, self.square), moments(x))
        self.count.copy_(merged.number)
        self.mean.copy_(merged.mean)
        self.square.copy_(merged.square)

    def normalize(self, x: Tensor, epsilon: float) -> Tensor:
        """(x - mean) / (standard deviation + epsilon); the identity before the first update."""
        deviation = standard_deviation(Moments(self.count, self.mean, self.square))
        return (x - self.mean.to(x)) / (deviation.to(x) + epsilon)


class LowRankLayer(nn.Module):
    """Parameters of one low-rank layer, the identity at the start, with a scale and shift for each site.

    V starts with the scale of Xavier's initialisation, so that it can turn towards the directions that matter. (The
    authors' code draws it with unit variance, where at a low rank it stays a set of random directions.)

    Args:
        size: Length of the vectors D.
        rank: Rank R.
        sites: Number of sites that share the layer.
    """

    def __init__(self, size: int, rank: int, sites: int) -> None:
        super().__init__()
        rank = min(rank, size)
        self.u = nn.Parameter(torch.zeros(size, rank))
        self.v = nn.Parameter(torch.randn(rank, size) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(sites, size))
        self.shift = nn.Parameter(torch.zeros(sites, size))
