"""Where the time of a MEND training step goes on SmolLM2-135M-Instruct.

python -m benchmarks.training_cost --data FOLDER

FOLDER holds the published files. Measured on fixed batches of ZsRE records: the contribution of each optimisation
(they are disabled one after another), how the cost grows with the batch, with the number of edit sites and with the
depth of the lowest one, the effect of the kept hidden states' precision, and how far a step is from the time that its
arithmetic alone takes at the speed of this machine's matrix products.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import read_result, write_result
from lightning_edit.data import ZsRE
from lightning_edit.data.batches import TrainingBatch, TrainingCollator, TrainingRecords
from lightning_edit.editors import MEND
from lightning_edit.editors.factor_cache import FactorCache
from lightning_edit.edits.stacked import StackedFactors, StackedMatrices
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.models.products import multiplied
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules import HypernetworkEditing
from lightning_edit.records import EditRecord
from lightning_edit.tokenization import TokenBatch

BATCH = 8
STEPS = 8
SITES = [-6, -5, -4, -3, -2, -1]


class Step:
    """A training step on fixed batches, with its own editor and optimizer.

    Args:
        model: The base model.
        records: The records of the batches.
        batch: Records in a batch.
        sites: The edit sites.
        kept: Whether the hidden states below the lowest site are kept.
        factors: Whether the gradient factors of the requests are kept.
        dtype: Precision in which they are kept.
    """

    def __init__(
        self,
        model: LanguageModel,
        records: list[EditRecord],
        batch: int = BATCH,
        sites: list[int] | None = None,
        kept: bool = True,
        factors: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(0)
        editor = MEND(sites=sites or SITES, rank=64, shared=True)
        self.batch_size = batch
        self.module = HypernetworkEditing(editor)
        self.module.attach(model)
        # LightningModule.log() raises without a Trainer.
        self.module.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
        editor.train()
        self.optimizer = torch.optim.Adam(editor.parameters(), lr=1e-6)
        dataset, collate = TrainingRecords(records), TrainingCollator(model.encoder)
        self.batches: list[TrainingBatch] = [
            collate([dataset[0, index] for index in range(start, start + batch)])
            for start in range(0, len(records) - batch + 1, batch)
        ]
        trunk = Trunk(model, self.module.lowest_layer(), dtype=dtype)
        encode = model.encoder.encode
        if kept:
            candidates = [dataset.candidates(record) for record in records]
            trunk.fill(
                [encode(*text) for texts, _ in candidates for text in texts],
                [encode(*text) for _, texts in candidates for text in texts],
            )
        else:
            # The whole model runs in every step.
            trunk.works = False
        self.module._kept = trunk
        if factors:
            cache = self.module._factors = FactorCache(2**34)
            texts = [encode(request.prompt, request.target) for record in records for request in record.requests]
            cache.fill(model, texts, editor.edit_sites(model), trunk)

    def __call__(self, index: int) -> Tensor:
        loss = self.module.training_step(self.batches[index % len(self.batches)], 0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def seconds_per_record(step: Step, steps: int = STEPS) -> float:
    step(0)
    start = time.perf_counter()
    for index in range(steps):
        step(index + 1)
    return round((time.perf_counter() - start) / (steps * step.batch_size), 4)


@contextmanager
def changed_weights() -> Iterator[None]:
    """Makes every edit a full matrix instead of a low-rank term."""

    def output(changes: StackedFactors, x: Tensor, rows: Tensor) -> Tensor:
        return StackedMatrices(changes.a @ changes.b)._output(x, rows)

    with mock.patch.object(StackedFactors, "_output", output):
        yield


@contextmanager
def head_at_all_positions() -> Iterator[None]:
    """Runs the language-model head at every position, used or not."""

    def head_inputs(model: LanguageModel, batch: TokenBatch, positions: Tensor) -> Tensor:
        output = model.model(**model.inputs(batch), use_cache=False, output_hidden_states=True)
        chosen: Tensor = output.hidden_states[-1][positions]
        return chosen

    with mock.patch.object(LanguageModel, "head_inputs", head_inputs):
        yield


@contextmanager
def backward_through_all_layers(model: LanguageModel) -> Iterator[None]:
    """Runs every backward pass down to the embeddings."""
    reached: deque[Tensor] = deque(maxlen=8)
    grad = torch.autograd.grad

    def begin(module: object, args: object, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        reached.append(output.detach().requires_grad_())
        return reached[-1]

    def through(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        return grad(outputs, [*inputs, *reached], *args, **{**kwargs, "allow_unused": True})[: len(inputs)]

    embeddings: Any = model.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(begin)
    try:
        with mock.patch.object(torch.autograd, "grad", through):
            yield
    finally:
        handle.remove()


def contributions(model: LanguageModel, records: list[EditRecord]) -> dict[str, float]:
    """Seconds per record, each entry with one more optimisation disabled than the one before."""
    seconds = {"all choices": seconds_per_record(Step(model, records))}
    with changed_weights():
        seconds["changed weights in place of terms of low rank, by itself"] = seconds_per_record(Step(model, records))
    seconds["without the kept gradient factors"] = seconds_per_record(Step(model, records, factors=False))
    plain = {"kept": False, "factors": False}
    seconds["and without the kept hidden states"] = seconds_per_record(Step(model, records, **plain))
    with ExitStack() as stack:
        stack.enter_context(head_at_all_positions())
        seconds["and the head on all positions"] = seconds_per_record(Step(model, records, **plain))
        stack.enter_context(backward_through_all_layers(model))
        seconds["and backward passes through all layers"] = seconds_per_record(Step(model, records, **plain))
        single = Step(model, records, batch=1, **plain)
        seconds["and one record at a time"] = seconds_per_record(single, STEPS * 2)
    return seconds


def proof(model: LanguageModel, records: list[EditRecord]) -> dict[str, float]:
    """Seconds of verifying a fast path against the full pass, once per run or for much longer texts."""
    encode = model.encoder.encode
    texts = [encode(request.prompt, request.target) for record in records[:BATCH] for request in record.requests]
    trunk, batch = Trunk(model, len(model.layer_map) - len(SITES)), model.encoder.collate(texts)
    times = []
    for _ in range(3):
        trunk.works = None
        start = time.perf_counter()
        trunk._serves(batch)
        times.append(time.perf_counter() - start)
    return {"seconds, once a run": round(min(times), 3)}


def growth(model: LanguageModel, records: list[EditRecord]) -> dict[str, dict[str, float]]:
    """Seconds per step."""

    def of(batch: int, sites: list[int]) -> float:
        step = Step(model, records[: batch * 5], batch, sites)
        return round(seconds_per_record(step, 4) * batch, 4)

    return {
        "batch": {str(batch): of(batch, SITES) for batch in (1, 2, 4, 8, 16, 32)},
        "number of sites, from the last layer down": {
            str(count): of(BATCH, list(range(-count, 0))) for count in (1, 2, 4, 6, 8, 12)
        },
        "depth of the only site": {str(layer): of(BATCH, [layer]) for layer in (29, 24, 18, 12, 6, 1)},
    }


def storage(model: LanguageModel, records: list[EditRecord]) -> dict[str, Any]:
    """Losses of the first steps with nothing kept, and with hidden states kept in two precisions."""

    def losses(**settings: Any) -> Tensor:
        step = Step(model, records, **settings)
        return torch.stack([step(index) for index in range(STEPS)])

    exact = losses(kept=False, factors=False)
    result: dict[str, Any] = {"losses, nothing kept": [round(float(value), 5) for value in exact]}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        difference = (losses(dtype=dtype) / exact - 1).abs()
        result[f"largest relative difference, kept in {name}"] = float(f"{float(difference.max()):.2e}")
    return result


def floor(model: LanguageModel, records: list[EditRecord]) -> dict[str, Any]:
    """Operations of a step, and the time that they take at the speed of a large matrix product."""
    step = Step(model, records)
    step(0)
    count, rate = operations(lambda: step(1)), speed_of_products()
    start = time.perf_counter()
    step(1)
    seconds = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(1)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {
        "GFLOP in a step": round(count / 1e9, 2),
        "GFLOP/s of a large matrix product": round(rate / 1e9, 1),
        "seconds at that speed": round(count / rate, 4),
        "seconds of the step": round(seconds, 4),
        "share of the arithmetic's floor": round(count / rate / seconds, 3),
        "share of the time by operation": {
            event.key: round(event.self_cpu_time_total / total, 3) for event in events[:12]
        },
    }


def speed_of_products(size: int = 2048) -> float:
    """Operations per second of a float32 matrix product on this machine, by the faster library."""
    first, second = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        multiplied(first, second)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def operations(run: Callable[[], object]) -> int:
    """Operations of the matrix products in a call, made without oneDNN, whose products are not counted."""
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--only", nargs="*", help="parts to measure again; the others keep their results")
    options = parser.parse_args()
    model = load_language_model("smollm2-135m-instruct")
    source = ZsRE(str(next(options.data.rglob("zsre_mend_train_10000*.json"))), split="train", limit=160)
    records = source.read().records
    few = records[: BATCH * (STEPS + 1)]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "seconds per record": lambda: contributions(model, few),
        "proof of the kept hidden states": lambda: proof(model, few),
        "seconds per step": lambda: growth(model, records),
        "precision of the kept hidden states": lambda: storage(model, few),
        "floor": lambda: floor(model, few),
    }
    kept = {name: value for name, value in read_result(__file__).items() if name in parts}
    result: dict[str, Any] = {"batch": BATCH, "sites": SITES, **kept}
    for name, part in parts.items():
        if options.only is not None and name not in options.only:
            continue
        result[name] = part()
        print(name, result[name], flush=True)
    write_result(__file__, result)


if __name__ == "__main__":
    main()
