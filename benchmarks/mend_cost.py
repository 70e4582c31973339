"""Seconds and peak memory of a MEND training step and of an evaluated record on SmolLM2-135M-Instruct.

python -m benchmarks.mend_cost
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.environment import peak_memory, write_result
from lightning_edit.data import WorldFacts
from lightning_edit.data.batches import TrainingBatch, TrainingCollator, TrainingRecords
from lightning_edit.editors import MEND
from lightning_edit.models import load_language_model
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules import EvaluationSettings, Evaluator, HypernetworkEditing

BATCH = 8
STEPS = 6


def step(module: HypernetworkEditing, batch: TrainingBatch, optimizer: torch.optim.Optimizer) -> None:
    module.training_step(batch, 0).backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    model = load_language_model("smollm2-135m-instruct")
    base = peak_memory()
    editor = MEND()
    module = HypernetworkEditing(editor)
    module.attach(model)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.Adam(editor.parameters(), lr=1e-6)
    records = WorldFacts(limit=BATCH * (STEPS + 1)).read().records
    dataset, collate = TrainingRecords(records), TrainingCollator(model.encoder)
    batches = [collate([dataset[0, i] for i in range(at, at + BATCH)]) for at in range(0, len(records), BATCH)]
    editor.train()
    result: dict[str, object] = {"batch": BATCH}

    def measure(label: str) -> None:
        step(module, batches[0], optimizer)
        start = time.perf_counter()
        for batch in batches[1:]:
            step(module, batch, optimizer)
        seconds = (time.perf_counter() - start) / STEPS
        result[label] = {"seconds_per_step": round(seconds, 3), "seconds_per_record": round(seconds / BATCH, 4)}
        print(label, result[label])

    measure("training, whole model")
    encode = model.encoder.encode
    trunk = Trunk(model, module.editor.edit_sites(model)[0].layer)
    drawn = [dataset.candidates(record) for record in records]
    trunk.fill([encode(*t) for n, _ in drawn for t in n], [encode(*t) for _, n in drawn for t in n])
    module._kept = trunk
    measure("training, trunk filled")
    state = sum(p.numel() * p.element_size() for p in editor.parameters()) * 4  # weights, gradient, two moments
    result["memory"] = {
        "base_model_loaded_bytes": base,
        "peak_bytes": peak_memory(),
        "editor_gradient_and_optimizer_bytes": state,
        "trunk_bytes": trunk.store.bytes,
    }
    module._kept = None
    result["share_in_base_model"] = share_in_base_model(module, batches, optimizer)
    editor.eval()
    for generate in (False, True):
        evaluator = Evaluator(model, EvaluationSettings(generate=generate))
        chosen = WorldFacts("validation", limit=16).read().records
        start = time.perf_counter()
        evaluator.evaluate(chosen, editor.edit_each_group(model, [record.requests for record in chosen]))
        seconds = (time.perf_counter() - start) / len(chosen)
        label = "evaluation with free generation" if generate else "evaluation, teacher-forced"
        probes = sum(len(record.all_probes) for record in chosen)
        result[label] = {"seconds_per_record": round(seconds, 3), "probes_per_record": round(probes / len(chosen), 1)}
        print(label, result[label])
    write_result(__file__, result)


def share_in_base_model(
    module: HypernetworkEditing, batches: list[TrainingBatch], optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """Where the time of one step goes: the base model's forward and backward passes, and everything else."""
    model, grad = module.language_model.model, torch.autograd.grad
    forward = model.forward

    def recorded_forward(*args: object, **kwargs: object) -> object:
        with record_function("base model forward"):
            return forward(*args, **kwargs)

    def recorded_grad(*args: Any, **kwargs: Any) -> Any:
        with record_function("base model backward"):
            return grad(*args, **kwargs)

    model.forward = recorded_forward
    torch.autograd.grad = recorded_grad  # type: ignore[assignment]
    try:
        start = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step(module, batches[0], optimizer)
        total = time.perf_counter() - start
    finally:
        del model.forward
        torch.autograd.grad = grad
    seconds = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages()}
    parts = {key: round(seconds[key], 3) for key in ("base model forward", "base model backward")}
    return {"step_seconds": round(total, 3), **parts, "share": round(sum(parts.values()) / total, 3)}


if __name__ == "__main__":
    main()
