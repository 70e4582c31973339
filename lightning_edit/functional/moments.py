"""Running mean and variance as sufficient statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Sufficient statistics of a set of vectors.

    Args:
        number: () number of vectors N.
        mean: (D) their mean.
        square: (D) sum of squared distances from the mean.
    """

    number: Tensor
    mean: Tensor
    square: Tensor


def moments(x: Tensor) -> Moments:
    """Computes the moments of N vectors in float64.

    Args:
        x: (N, D); N may be zero.
    """
    x = x.detach().double()
    count = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
    mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
    return Moments(count, mean, ((x - mean) ** 2).sum(0))


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Merges the moments of two disjoint sets (Chan, Golub and LeVeque 1979); either may be empty."""
    count = first.number + second.number
    share = second.number / count.clamp(min=1)
    distance = second.mean - first.mean
    mean = first.mean + distance * share
    square = first.square + second.square + distance**2 * first.number * share
    return Moments(count, mean, square)


def standard_deviation(statistics: Moments) -> Tensor:
    """Computes the (D) unbiased standard deviation sqrt(square / (N - 1)); one for fewer than two vectors."""
    if float(statistics.number) < 2:
        return torch.ones_like(statistics.square)
    return (statistics.square / (statistics.number - 1)).sqrt()
