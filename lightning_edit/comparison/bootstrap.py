"""Confidence intervals over records, paired between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Values = Mapping[str, Sequence[float]]
"""Values of the probes, by record."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Args:
        mean: The mean; infinite if a value is.
        low: Its 2.5th percentile over bootstrap samples of records.
        high: Its 97.5th percentile.
        records: Number of records.
        probes: Number of probes.
    """

    mean: float
    low: float
    high: float
    records: int
    probes: int


def mean_interval(groups: Sequence[Values], resamples: int, seed: int, per_record: bool = False) -> Interval:
    """Averages groups' means of a measure, with a percentile bootstrap interval over records (Efron 1979).

    Records are drawn with replacement, each with all its probes, because probes of one record are dependent. Groups
    without probes in a sample are left out of its mean.

    Args:
        groups: For each group, the values of its probes by record; one group gives a plain mean.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws; equal seeds draw the same records.
        per_record: Average over records, with each record's probes averaged first, instead of over probes.
    """
    names = _records(groups)
    sums, counts = _sums(groups, names, per_record)
    low, high = _percentiles(_resampled(sums, counts, resamples, seed))
    return Interval(_mean(sums, counts), low, high, len(names), _probes(groups, names))


def paired_difference(
    first: Sequence[Values], second: Sequence[Values], resamples: int, seed: int, per_record: bool = False
) -> Interval | None:
    """Computes the paired difference of two methods' means, over the records that both have.

    Args:
        first: The first method's groups; see :func:`mean_interval`.
        second: The second method's groups, which are subtracted.
        resamples: Number of bootstrap samples; both methods use the same records in each.
        seed: Seed of the draws.
        per_record: See :func:`mean_interval`.

    Returns:
        The difference; None if they share no record.
    """
    shared = sorted(set(_records(first)) & set(_records(second)))
    if not shared:
        return None
    pairs = [_sums(groups, shared, per_record) for groups in (first, second)]
    means = [_resampled(*pair, resamples, seed) for pair in pairs]
    with np.errstate(invalid="ignore"):
        low, high = _percentiles(means[0] - means[1])
        mean = float(np.float64(_mean(*pairs[0])) - np.float64(_mean(*pairs[1])))
    return Interval(mean, low, high, len(shared), _probes(first, shared))


def _records(groups: Sequence[Values]) -> list[str]:
    return sorted({name for values in groups for name, numbers in values.items() if len(numbers)})


def _probes(groups: Sequence[Values], names: Sequence[str]) -> int:
    return sum(len(values.get(name, ())) for values in groups for name in names)


def _sums(groups: Sequence[Values], names: Sequence[str], per_record: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns (groups, records) sums and counts of the values to average."""
    sums, counts = np.zeros((len(groups), len(names))), np.zeros((len(groups), len(names)))
    for row, values in enumerate(groups):
        for column, name in enumerate(names):
            numbers = np.asarray(values.get(name, ()), dtype=np.float64)
            if len(numbers):
                sums[row, column] = numbers.mean() if per_record else numbers.sum()
                counts[row, column] = 1 if per_record else len(numbers)
    return sums, counts


def _mean(sums: np.ndarray, counts: np.ndarray) -> float:
    return float(_group_means(sums.sum(1, keepdims=True), counts.sum(1, keepdims=True))[0])


def _resampled(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Returns (resamples) means over records drawn with replacement."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, sums.shape[1], (resamples, sums.shape[1]))
    return _group_means(sums[:, draws].sum(-1), counts[:, draws].sum(-1))


def _group_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Averages (groups, samples) sums / counts over the groups with a nonzero count."""
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    filled = (counts > 0).sum(0)
    total: np.ndarray = means.sum(0) / np.maximum(filled, 1)
    return total


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
