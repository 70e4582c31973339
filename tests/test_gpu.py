"""Edits and training steps on a GPU, and the benchmark that measures them, in a small form on the CPU."""

import math

import pytest
import torch

from benchmarks.gpu import agreement, editors, measure, random_model

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")


def test_the_benchmark_measures_in_a_small_form():
    result = measure("tiny", "cpu", 2, ["MEND", "ROME", "MELO", "ICE"])
    assert set(editors(random_model("tiny", "cpu", torch.float32))) > {"MEND", "ROME", "MELO", "ICE"}
    assert set(result["agreement with the CPU"]) == {"MEND", "ROME", "MELO", "ICE"}
    # Both runs use the CPU here, so any difference would come from the order of edits or a seed.
    assert max(result["agreement with the CPU"].values()) < 1e-5
    assert set(result["edits"]) == {"MEND", "ROME", "MELO", "ICE"}
    for row in result["edits"].values():
        assert all(value > 0 for value in row.values())
    assert result["training"]["seconds per step"] > 0
    assert result["model"]["bytes"] > 0


@gpu
@needs_gpu
def test_edits_on_a_gpu_are_those_on_the_cpu():
    torch.backends.cuda.matmul.allow_tf32 = False
    differences = agreement("cuda")
    assert max(differences.values()) < 5e-3, differences


@gpu
@needs_gpu
def test_edits_and_training_steps_in_bfloat16_on_a_gpu():
    result = measure("tiny", "cuda", 3)
    for row in result["edits"].values():
        assert row["seconds, one edit: peak memory, times the model"] > 0
        assert all(math.isfinite(value) for value in row.values())
