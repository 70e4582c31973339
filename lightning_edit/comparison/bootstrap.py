"""Confidence intervals over records, paired between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Values = Mapping[str, Sequence[float]]
"""Record to the values of its probes."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Args:
        mean: The mean.
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


def mean_interval(values: Values, resamples: int, seed: int, per_record: bool = False) -> Interval:
    """The mean of a measure, with a percentile bootstrap interval over records (Efron 1979).

    Records are drawn with replacement and bring all their probes, because probes of one record depend on one another.

    Args:
        values: Record to the values of its probes; records without any are left out.
        resamples: Bootstrap samples.
        seed: Seed of the draws; equal seeds draw the same records.
        per_record: Average over records, with each record's probes averaged first, instead of over probes.
    """
    sums, counts = _sums(values, sorted(values), per_record)
    means = _resampled(sums, counts, resamples, seed)
    low, high = _percentiles(means)
    probes = sum(len(one) for one in values.values())
    return Interval(float(sums.sum() / counts.sum()), low, high, len(sums), probes)


def paired_difference(
    first: Values, second: Values, resamples: int, seed: int, per_record: bool = False
) -> Interval | None:
    """The difference of two methods' means on the records that both have, with the same records in each sample.

    Args:
        first: Record to values of the first method.
        second: Record to values of the second, which is subtracted.
        resamples: Bootstrap samples.
        seed: Seed of the draws.
        per_record: See :func:`mean_interval`.

    Returns:
        None where they share no record.
    """
    shared = sorted(name for name in set(first) & set(second) if len(first[name]) and len(second[name]))
    if not shared:
        return None
    pairs = [_sums(values, shared, per_record) for values in (first, second)]
    means = [_resampled(*pair, resamples, seed) for pair in pairs]
    mean = float(pairs[0][0].sum() / pairs[0][1].sum() - pairs[1][0].sum() / pairs[1][1].sum())
    low, high = _percentiles(means[0] - means[1])
    return Interval(mean, low, high, len(shared), int(pairs[0][1].sum()))


def _sums(values: Values, names: Sequence[str], per_record: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each record the sum and the number of what is averaged."""
    arrays = [np.asarray(values[name], dtype=np.float64) for name in names if len(values[name])]
    if per_record:
        return np.array([array.mean() for array in arrays]), np.ones(len(arrays))
    return np.array([array.sum() for array in arrays]), np.array([float(len(array)) for array in arrays])


def _resampled(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples) means over records drawn with replacement."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(sums), (resamples, len(sums)))
    means: np.ndarray = sums[draws].sum(1) / counts[draws].sum(1)
    return means


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
