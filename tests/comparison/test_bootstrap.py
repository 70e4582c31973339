"""Bootstrap intervals against plain loops and the normal approximation."""

import numpy as np
import pytest

from lightning_edit.comparison.bootstrap import mean_interval, paired_difference

VALUES = {"a": [1.0, 0.0], "b": [1.0], "c": [0.0, 0.0, 1.0], "d": []}


def by_hand(values, resamples, seed, per_record):
    names = sorted(name for name in values if values[name])
    generator = np.random.default_rng(seed)
    means = []
    for draw in generator.integers(0, len(names), (resamples, len(names))):
        drawn = [values[names[index]] for index in draw]
        flat = [np.mean(one) for one in drawn] if per_record else [value for one in drawn for value in one]
        means.append(np.mean(flat))
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("per_record", [False, True])
def test_whole_records_are_drawn(per_record):
    interval = mean_interval([VALUES], 500, 3, per_record)
    assert (interval.low, interval.high) == pytest.approx(tuple(by_hand(VALUES, 500, 3, per_record)))
    assert interval.mean == pytest.approx(np.mean([0.5, 1, 1 / 3]) if per_record else 0.5)
    assert (interval.records, interval.probes) == (3, 6)


def test_many_records_give_the_normal_interval():
    generator = np.random.default_rng(0)
    values = {str(number): [value] for number, value in enumerate(generator.normal(2.0, 1.0, 2000))}
    interval = mean_interval([values], 4000, 1)
    assert interval.mean - interval.low == pytest.approx(1.96 / np.sqrt(2000), rel=0.1)
    assert interval.high - interval.mean == pytest.approx(1.96 / np.sqrt(2000), rel=0.1)


def test_pairs_share_their_records_so_that_what_is_common_cancels():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 5, 300)
    first = {str(number): [value + 0.5] for number, value in enumerate(hard)}
    second = {str(number): [value] for number, value in enumerate(hard)} | {"alone": [99.0]}
    interval = paired_difference([first], [second], 1000, 0)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))
    assert interval.records == 300
    assert paired_difference([{"x": [1.0]}], [{"y": [1.0]}], 10, 0) is None


def test_groups_count_equally_in_every_sample():
    few, many = {"a": [1.0]}, {"a": [0.0] * 9, "b": [0.0], "c": [0.0, 0.0]}
    assert mean_interval([few, many], 200, 0).mean == 0.5
    # Equal values stay what they are, whatever records a sample has.
    ones = [{"a": [1.0]}, {"b": [1.0, 1.0], "c": [1.0]}]
    for per_record in (False, True):
        interval = mean_interval(ones, 200, 0, per_record)
        assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)
    assert mean_interval([{"a": [1.0, 0.0], "b": [1.0]}, {"a": [1.0]}], 10, 0, per_record=True).mean == 0.875
    shorter = [{"b": [1.0, 1.0]}]
    difference = paired_difference(ones, shorter, 100, 0)
    assert (difference.mean, difference.low, difference.high, difference.records) == (0.0, 0.0, 0.0, 1)


def test_values_that_are_not_finite_are_not_dropped():
    assert mean_interval([{"a": [1.0], "b": [float("inf")]}], 50, 0).mean == float("inf")
