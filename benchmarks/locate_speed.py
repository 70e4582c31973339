"""Editing speed of locate-then-edit methods on SmolLM2-135M-Instruct, beside a reference implementation.

python -m benchmarks.locate_speed --data FOLDER [--reference LINES] [--only PART …]

FOLDER holds the published files. Edits are CounterFact's first ones, with identity covariances (time does not depend on
them), 25 evaluations of the loss at most and the reference's own stop at 0.05, ROME at layer 5 with 21 contexts, MEMIT
at layers 4 to 8 with 6. Each part runs in a separate process. LINES: JSON lines with {"run": PART, "reference": …,
"commit": …, and "seconds_per_edit" or "tokens_per_second": …}.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

from benchmarks.environment import in_a_process, peak_memory, read_result, write_result
from benchmarks.training_cost import operations, speed_of_products
from lightning_edit.data import CounterFact
from lightning_edit.data.corpus import TextCorpus
from lightning_edit.editors import MEMIT, ROME, Editor, ValueSettings
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.models.moment_sums import MomentSums
from lightning_edit.records import EditRequest

EVALUATIONS = 4
"""Evaluations of the loss, where costs are compared with one another."""
SEARCH = ValueSettings(steps=25, stop_below=0.05)
COMMON: dict[str, Any] = {"covariance": "identity", "search": SEARCH}


def rome(**settings: Any) -> Editor:
    return ROME(**{"layers": [5], **COMMON, **settings})


def memit(**settings: Any) -> Editor:
    return MEMIT(**{"layers": [4, 5, 6, 7, 8], **COMMON, **settings})


def requests_of(data: Path, count: int) -> list[EditRequest]:
    source = next(data.rglob("counterfact_original*.json"))
    return [request for record in CounterFact(str(source), limit=count).read().records for request in record.requests]


def timed(model: LanguageModel, editor: Editor, groups: list[list[EditRequest]]) -> dict[str, float]:
    """Seconds and optimiser steps per edit, for groups edited one after another."""
    editor.setup(model)
    editor.edit(model, groups[0])
    steps: list[int] = []
    step = torch.optim.Adam.step

    def counted(self: torch.optim.Adam, closure: None = None) -> None:
        steps.append(1)
        step(self, closure)

    number = sum(map(len, groups[1:]))
    with mock.patch.object(torch.optim.Adam, "step", counted):
        start = time.perf_counter()
        for group in groups[1:]:
            editor.edit(model, group)
        seconds = time.perf_counter() - start
    return {
        "edits": number,
        "seconds_per_edit": round(seconds / number, 3),
        "optimizer_steps_per_edit": round(len(steps) / number, 1),
    }


def single(make: Callable[..., Editor], count: int) -> Callable[[LanguageModel, Path], dict[str, Any]]:
    def run(model: LanguageModel, data: Path) -> dict[str, Any]:
        return timed(model, make(), [[request] for request in requests_of(data, count + 1)])

    return run


def without_onednn(model: LanguageModel, data: Path) -> dict[str, Any]:
    """Single ROME edits with torch's own matrix products."""
    with torch.backends.mkldnn.flags(enabled=False):
        return single(rome, 8)(model, data)


def side_by_side(model: LanguageModel, data: Path) -> dict[str, Any]:
    """32 independent ROME edits in one call."""
    editor, requests = rome(), requests_of(data, 33)
    editor.setup(model)
    editor.edit(model, requests[:1])
    start = time.perf_counter()
    editor.edit_each(model, requests[1:])
    return {"edits": 32, "seconds_per_edit": round((time.perf_counter() - start) / 32, 3)}


def joint(model: LanguageModel, data: Path) -> dict[str, Any]:
    requests = requests_of(data, 33)
    return timed(model, memit(), [requests[:1], requests[1:]])


def statistics(model: LanguageModel, data: Path) -> dict[str, Any]:
    """Second moments at five layers in one pass."""
    rows = TextCorpus(str(next(data.rglob("valid.txt"))), tokens=24 * 2048).read(model.tokenizer)
    sites = [model.layer_map.site(layer) for layer in (4, 5, 6, 7, 8)]
    sums = MomentSums()
    sums.add_batch(model, rows[:8].long(), sites)
    start = time.perf_counter()
    for part in rows[8:].long().split(8):
        sums.add_batch(model, part, sites)
    seconds = time.perf_counter() - start
    return {"layers": len(sites), "tokens_per_second": round(rows[8:].numel() / seconds, 1)}


def growth(model: LanguageModel, data: Path) -> dict[str, Any]:
    """Seconds per edit against n, layer, depth and the length of the prompt, with the lower bound of the arithmetic."""
    requests, rate = requests_of(data, 129), speed_of_products()

    def of(editor: Editor, group: list[EditRequest], model: LanguageModel = model) -> dict[str, float]:
        editor.setup(model)
        # The fast paths are verified once, on texts of this length.
        editor.edit(model, group[-1:])
        start = time.perf_counter()
        editor.edit(model, group)
        seconds = time.perf_counter() - start
        # Counting takes time, hence outside the timed call.
        floor = operations(lambda: editor.edit(model, group)) / rate
        return {"seconds": round(seconds / len(group), 3), "floor": round(floor / len(group), 3)}

    few: dict[str, Any] = {"search": ValueSettings(steps=EVALUATIONS)}
    lengths = {}
    for words in (0, 20, 60, 120):
        lead = "It is said. " * (words // 3)
        longer = [EditRequest(lead + request.prompt, request.target, request.subject) for request in requests[:2]]
        lengths[str(len(model.encoder.encode(longer[0].prompt).ids))] = of(rome(**few), longer[:1])
    return {
        "GFLOP/s of a large matrix product": round(rate / 1e9, 1),
        f"MEMIT, {EVALUATIONS} evaluations, against n": {
            str(n): of(memit(**few), requests[:n]) for n in (1, 8, 32, 128)
        },
        f"ROME, {EVALUATIONS} evaluations, against the layer": {
            str(layer): of(rome(layers=[layer], **few), requests[:1]) for layer in (0, 5, 10, 15, 20, 25)
        },
        f"ROME at a sixth of the depth, {EVALUATIONS} evaluations, against the number of layers": {
            str(depth): of(rome(layers=[depth // 6], **few), requests[:1], of_depth(model, depth))
            for depth in (6, 12, 30, 60)
        },
        f"ROME, {EVALUATIONS} evaluations, against the prompt's tokens": lengths,
    }


def of_depth(model: LanguageModel, depth: int) -> LanguageModel:
    """A model with random weights of the same shapes, and another number of layers."""
    torch.manual_seed(0)
    config = copy.deepcopy(model.model.config)
    config.num_hidden_layers, config.layer_types = depth, None
    return LanguageModel(AutoModelForCausalLM.from_config(config), model.tokenizer, f"{depth} layers")


PARTS: dict[str, Callable[[LanguageModel, Path], dict[str, Any]]] = {
    "ROME, single edits": single(rome, 8),
    "ROME, single edits, torch's own products": without_onednn,
    "ROME, 32 side by side": side_by_side,
    "MEMIT, single edits": single(memit, 8),
    "MEMIT, 32 jointly": joint,
    "statistics": statistics,
    "growth": growth,
}


def measure(name: str, data: Path) -> dict[str, Any]:
    model = load_language_model("smollm2-135m-instruct")
    result = PARTS[name](model, data)
    weights = sum(value.numel() * value.element_size() for value in model.model.parameters())
    return {**result, "memory": {"peak": peak_memory(), "base model": weights}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--reference", type=Path, help="measurements of the reference implementation")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="parts to measure again")
    parser.add_argument("--here", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options.data)))
        return
    kept = read_result(__file__)
    results: dict[str, Any] = kept.get("runs", {})
    references: list[dict[str, Any]] = kept.get("references", [])
    if options.reference:
        references = [json.loads(line) for line in options.reference.read_text().splitlines()]
    for name in options.only:
        results[name] = in_a_process("benchmarks.locate_speed", options.data, name)
        print(name, json.dumps(results[name]), flush=True)
        write_result(__file__, {"runs": results, "references": references, "ratios": ratios(results, references)})


def ratios(results: dict[str, Any], references: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than the references."""
    speedups = {}
    for line in references:
        result = results.get(line["run"])
        if result and "seconds_per_edit" in line:
            speedups[f"{line['run']}: {line['reference']}"] = round(
                line["seconds_per_edit"] / result["seconds_per_edit"], 2
            )
        elif result:
            speedup = result["tokens_per_second"] / line["tokens_per_second"]
            speedups[f"{line['run']}: {line['reference']}"] = round(speedup, 2)
    return speedups


if __name__ == "__main__":
    main()
