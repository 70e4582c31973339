"""Checks of fast forward passes against full ones, and what is remembered of them."""

import pytest
import torch

from lightning_edit.errors import EditError
from lightning_edit.models.fast_paths import FastPathRecord, problem_of

FULL = torch.arange(6.0).view(2, 3)


def raising(error):
    def fast():
        raise error

    return fast


def test_equal_results_have_no_problem_and_others_do():
    assert problem_of(lambda: FULL + 1e-5, FULL, torch.float32) is None
    assert "relative difference" in problem_of(lambda: FULL + 0.1, FULL, torch.float32)
    assert problem_of(lambda: FULL + 0.1, None, torch.float32) is None


def test_an_architecture_that_cannot_be_run_in_part_is_a_problem():
    assert problem_of(raising(IndexError("no such layer")), FULL, torch.float32) == (
        "it fails with IndexError: no such layer"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to …"),
        EditError("a batch of 3 rows reached edits that were applied to 2 rows"),
    ],
)
def test_missing_memory_and_errors_of_this_package_are_raised(error):
    with pytest.raises(type(error), match=str(error)[:20].replace("[", r"\[")):
        problem_of(raising(error), FULL, torch.float32)


def test_a_path_is_verified_up_to_a_length_and_refused_from_a_length_on():
    record = FastPathRecord()
    assert not record.is_verified("suffixes", 3, 1)
    record.verify("suffixes", 3, 10, ("details",))
    record.verify("suffixes", 3, 4, ("details",))
    assert [record.is_verified("suffixes", 3, length) for length in (1, 20, 21)] == [True, True, False]
    assert record.details("suffixes", 3) == ("details",)
    assert not record.is_verified("suffixes", 2, 1)
    record.refuse("suffixes", 3, 50)
    record.refuse("suffixes", 3, 40)
    assert [record.is_refused("suffixes", 3, length) for length in (39, 40, 60)] == [False, True, True]
    record.clear()
    assert not record.is_verified("suffixes", 3, 1)
    assert not record.is_refused("suffixes", 3, 60)
