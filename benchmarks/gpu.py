"""Edits and training steps on a GPU: seconds, memory, and agreement with the CPU.

python -m benchmarks.gpu [--shape llama-2-7b] [--device cuda] [--edits 8] [--methods NAME …]

The model has random weights in bfloat16, so that nothing has to be downloaded; time and memory do not depend on the
weights' values. Its tokenizer is a byte-level one: texts have about four times as many tokens as with the model's own.
Fits into ten minutes on one GPU. Agreement is measured in float32 on a tiny model, edited on the CPU and on the GPU.
The tests marked gpu run separately: pytest -m gpu.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.environment import write_result
from benchmarks.training_cost import Step
from lightning_edit.data import WorldFacts
from lightning_edit.editors import GRACE, ICE, MELO, MEMIT, MEND, ROME, WISE, AdaLoRA, Editor, FineTuning, LoRA
from lightning_edit.editors.prompts import ContextSettings
from lightning_edit.models import LanguageModel
from lightning_edit.records import EditRecord
from tests.tiny_models import byte_level_tokenizer

SHAPES: dict[str, dict[str, int]] = {
    "llama-2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "tiny": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "vocab_size": 512, "max_position_embeddings": 512,
    },
}  # fmt: skip
TRAINING_BATCH = 8
TRAINING_STEPS = 4


def random_model(shape: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """A Llama with random weights, built where it is used."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).eval()
    finally:
        torch.set_default_dtype(before)
    return LanguageModel(model, byte_level_tokenizer(), name=f"random {shape}")


def editors(model: LanguageModel) -> dict[str, Callable[[], Editor]]:
    """One editor of each family, with published numbers of steps; layers are those for Llama-2 7B, in proportion."""
    depth = len(model.layer_map.blocks)
    early, late = round(5 / 32 * depth), round(27 / 32 * depth)
    contexts = ContextSettings(templates=[["{}"], ["Well. {}", "I think so. {}"]])
    located: dict[str, Any] = {"covariance": "identity", "contexts": contexts}
    return {
        "MEND": lambda: MEND(sites=[-3, -2, -1], rank=64, shared=True),
        "ROME": lambda: ROME(layers=[early], **located),
        "MEMIT": lambda: MEMIT(layers=[early - 1, early], **located),
        "FT-M": lambda: FineTuning(sites=[late]),
        "LoRA": LoRA,
        "AdaLoRA": AdaLoRA,
        "GRACE": lambda: GRACE(site=late),
        "MELO": lambda: MELO(key_site=late - 1, sites=[late]),
        "WISE": lambda: WISE(site=late, contexts=["{}", "Well. {}"], unrelated=["Water boils at a high temperature."]),
        "ICE": ICE,
    }


def records(count: int) -> list[EditRecord]:
    """Facts that come with the package."""
    return WorldFacts("train", limit=count).read().records


@contextmanager
def measured(device: str, row: dict[str, Any], name: str, count: int, model_bytes: int) -> Iterator[None]:
    """Adds seconds for each of ``count`` items and, on a GPU, the peak memory as a multiple of the model."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield
    if on_gpu:
        torch.cuda.synchronize()
        row[f"{name}: peak memory, times the model"] = round(torch.cuda.max_memory_allocated() / model_bytes, 2)
    row[name] = round((time.perf_counter() - start) / count, 4)


def edit_costs(model: LanguageModel, device: str, edits: int, methods: list[str]) -> dict[str, Any]:
    """Seconds for one edit alone and for one of several made together, and the seconds to ask them a prompt each."""
    requests = [record.requests[0] for record in records(edits)]
    model_bytes, builders = _bytes(model), editors(model)
    result: dict[str, Any] = {}
    for name in methods:
        editor = builders[name]()
        editor.setup(model)
        editor.to(device)
        editor.prepare(model)
        editor.edit(model, requests[:1])  # warm-up: allocations and checks of fast passes
        row: dict[str, Any] = {}
        with measured(device, row, "seconds, one edit", 1, model_bytes):
            editor.edit(model, requests[1:2])
        with measured(device, row, "seconds, one of several", len(requests), model_bytes):
            batch = editor.edit_each(model, requests)
        with (
            measured(device, asking := {}, "seconds", len(requests), model_bytes),
            batch.applied(model, list(range(len(requests)))) as edited,
        ):
            edited.score([one.prompt for one in requests], [one.target for one in requests])
        result[name] = {**row, "seconds to score its prompt": asking["seconds"]}
        print(name, result[name], flush=True)
    return result


def training_costs(model: LanguageModel, device: str) -> dict[str, Any]:
    """Seconds and memory of a MEND training step."""
    row: dict[str, Any] = {"batch": TRAINING_BATCH}
    step = Step(model, records(2 * TRAINING_BATCH), TRAINING_BATCH, [-3, -2, -1], kept=False, factors=False)
    step.module.to(device)
    step(0)
    with measured(device, row, "seconds per step", TRAINING_STEPS, _bytes(model)):
        for number in range(TRAINING_STEPS):
            step(number)
    return row


def agreement(device: str, methods: list[str] | None = None) -> dict[str, float]:
    """Largest difference of edited log-probabilities between the CPU and the device, for each editor, in float32."""
    requests = [record.requests[0] for record in records(3)]
    prompts, targets = [one.prompt for one in requests], [one.target for one in requests]
    values: dict[str, list[list[float]]] = {}
    for place in ("cpu", device):
        model = random_model("tiny", "cpu", torch.float32)
        model.model.to(place)
        builders = editors(model)
        for name in methods or list(builders):
            torch.manual_seed(0)
            editor = builders[name]()
            editor.setup(model)
            editor.to(place)
            with editor.edit_each(model, requests).applied(model, [0, 1, 2]) as edited:
                scores = edited.score(prompts, targets)
            values.setdefault(name, []).append([value for score in scores for value in score.log_probs])
    return {
        name: max(abs(first - second) for first, second in zip(*pair, strict=True)) for name, pair in values.items()
    }


def measure(shape: str, device: str, edits: int, methods: list[str] | None = None) -> dict[str, Any]:
    """All measurements."""
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = False
    result: dict[str, Any] = {"agreement with the CPU": agreement(device, methods)}
    model = random_model(shape, device, torch.bfloat16)
    wanted = methods or list(editors(model))
    result["model"] = {"shape": shape, "bytes": _bytes(model), "device": _name(device)}
    result["edits"] = edit_costs(model, device, edits, wanted)
    result["training"] = training_costs(model, device)
    return result


def _bytes(model: LanguageModel) -> int:
    return sum(parameter.nbytes for parameter in model.model.parameters())


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-2-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--edits", type=int, default=8, help="edits that are made together")
    parser.add_argument("--methods", nargs="*", help="of the editors; all if none is given")
    options = parser.parse_args()
    if options.edits < 2:
        parser.error("--edits: at least 2")
    write_result(__file__, measure(options.shape, options.device, options.edits, options.methods))


if __name__ == "__main__":
    main()
