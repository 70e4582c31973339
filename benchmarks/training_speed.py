"""Training speed of editors on SmolLM2-135M-Instruct, beside the reference implementations.

python -m benchmarks.training_speed --data FOLDER [--reference LINES] [--only NAME …]

FOLDER holds the published files. Every run is a whole Trainer.fit in a separate process: three epochs of the first
1,000 ZsRE records, the hidden states below the edit sites and the gradient factors of the requests kept in memory; the
time of computing them is included. LINES is a file of JSON lines with the seconds per record of the reference
implementations, measured on the same machine with the same model, records, edit sites, rank and batch:
{"run": NAME, "reference": …, "commit": …, "seconds_per_record": …}.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.environment import in_a_process, peak_memory, read_result, write_result
from lightning_edit.data import EditDataModule, ZsRE
from lightning_edit.editors import MALMEN, MEND, SERAC
from lightning_edit.models import load_language_model
from lightning_edit.modules import HypernetworkEditing, HypernetworkOptimization, MemoryEditing
from lightning_edit.modules.trained import TrainedEditing, TrunkSettings

SITES = [-6, -5, -4, -3, -2, -1]
LIMIT = 20.0
"""Gigabytes of hidden states, and of gradient factors, that may be kept."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        editor: Name of the method.
        batch: Independent edits in a step.
        joint: Records edited jointly in each of them.
        kept: Whether hidden states and gradient factors are kept.
        records: Records of an epoch.
        epochs: Epochs.
    """

    editor: str
    batch: int
    joint: int = 1
    kept: bool = True
    records: int = 1000
    epochs: int = 3

    def module(self) -> TrainedEditing:
        trunk = TrunkSettings(gigabytes=LIMIT if self.kept else 0.0)
        if self.editor == "SERAC":
            return MemoryEditing(SERAC(), trunk=trunk)
        editor = {"MEND": MEND, "MALMEN": MALMEN}[self.editor](sites=SITES, rank=64, shared=True)
        return HypernetworkEditing(
            editor,
            trunk=trunk,
            factor_gigabytes=trunk.gigabytes,
            optimization=HypernetworkOptimization(learning_rate=1e-6, step_size_learning_rate=1e-6),
        )


RUNS = {
    "MEND, batch 1": Run("MEND", 1),
    "MEND, batch 8": Run("MEND", 8),
    "MEND, batch 16": Run("MEND", 16),
    "MALMEN, 256 jointly": Run("MALMEN", 1, 256),
    "SERAC, batch 10": Run("SERAC", 10),
    "MEND, batch 8, nothing kept, for its memory": Run("MEND", 8, kept=False, records=240, epochs=1),
}


class Clock(Callback):
    """Measures the seconds of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(time.perf_counter() - self._start)


def measure(run: Run, data: Path) -> dict[str, Any]:
    """Trains in this process."""
    before = peak_memory()
    model = load_language_model("smollm2-135m-instruct")
    weights = sum(value.numel() * value.element_size() for value in model.model.parameters())
    module, clock = run.module(), Clock()
    module.attach(model)
    source = ZsRE(str(next(data.rglob("zsre_mend_train_10000*.json"))), split="train", limit=run.records)
    datamodule = EditDataModule(train=source, batch_size=run.batch, requests_per_edit=run.joint)
    trainer = Trainer(
        max_epochs=run.epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=datamodule)
    seconds = time.perf_counter() - start
    # The last batch of an epoch is dropped if it is not full.
    records = trainer.global_step * run.batch * run.joint // run.epochs
    # Weights, gradient and Adam's two moments.
    editor = 4 * sum(value.numel() * value.element_size() for value in module.editor.parameters())
    return {
        "records of an epoch": records,
        "steps": trainer.global_step,
        "seconds": round(seconds, 1),
        "seconds of the cache": round(seconds - sum(clock.epochs), 1),
        "seconds of each epoch": [round(value, 1) for value in clock.epochs],
        "seconds_per_record": round(seconds / (run.epochs * records), 4),
        "seconds_per_record, first epoch with the cache": round((seconds - sum(clock.epochs[1:])) / records, 4),
        "seconds_per_record, last epoch": round(clock.epochs[-1] / records, 4),
        "memory": {
            "resident before loading": before,
            "peak": peak_memory(),
            "base model": weights,
            "editor, gradient, moments": editor,
            "kept hidden states": module.trunk().store.bytes,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--reference", type=Path, help="measurements of the reference implementations")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS), help="runs to measure again")
    parser.add_argument("--here", choices=list(RUNS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(RUNS[options.here], options.data)))
        return
    kept = read_result(__file__)
    results: dict[str, Any] = kept.get("runs", {})
    references: list[dict[str, Any]] = kept.get("references", [])
    if options.reference:
        references = [json.loads(line) for line in options.reference.read_text().splitlines()]
    for name in options.only:
        results[name] = in_a_process("benchmarks.training_speed", options.data, name)
        print(name, json.dumps(results[name]), flush=True)
        write_result(__file__, {"runs": results, "references": references, "ratios": ratios(results, references)})
    write_result(__file__, {"runs": results, "references": references, "ratios": ratios(results, references)})


def ratios(results: dict[str, Any], references: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The references' seconds per record divided by ours."""
    speedups: dict[str, dict[str, float]] = {}
    for line in references:
        result = results.get(line["run"])
        if result:
            keys = ("seconds_per_record", "seconds_per_record, first epoch with the cache")
            keys += ("seconds_per_record, last epoch",)
            speedups[f"{line['run']}: {line['reference']}"] = {
                key.removeprefix("seconds_per_record, ").replace("seconds_per_record", "three epochs with the cache"): (
                    round(line["seconds_per_record"] / result[key], 2)
                )
                for key in keys
            }
    return speedups


if __name__ == "__main__":
    main()
