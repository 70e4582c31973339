"""Writes test results: metrics.json, predictions.jsonl, and a table on the screen."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torchmetrics import Metric

from lightning_edit.edits.provenance import package_versions
from lightning_edit.files import finite_json, replace_file, write_json
from lightning_edit.metrics.collection import measures_of
from lightning_edit.metrics.scope import scope_curve
from lightning_edit.modules.base import EditingModule
from lightning_edit.printing import print_line
from lightning_edit.records import EditOutcome

T = TypeVar("T")
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"


def prediction(outcome: EditOutcome, decode: Any, extra: Mapping[str, Metric] | None = None) -> dict[str, Any]:
    """Returns one line of predictions.jsonl.

    Args:
        outcome: The outcome of a probe.
        decode: Turns token ids into text.
        extra: Further metrics; see :func:`measures_of`.
    """
    probe, before, after = outcome.probe, outcome.before, outcome.after
    measures = measures_of(outcome, extra)
    if outcome.route is not None:
        measures["scope_score"] = outcome.route.score
    return {
        "record": outcome.record_id,
        "kind": str(probe.kind),
        "group": probe.group,
        "prompt": probe.prompt,
        "expected": [list(aliases) for aliases in probe.answers],
        "before": {"teacher_forced": decode(before.predicted_ids), "generation": before.generation},
        "after": {
            "teacher_forced": decode(after.predicted_ids),
            "generation": after.generation,
            **({"in_context": dict(after.in_context)} if after.in_context else {}),
        },
        "measures": measures,
    }


def not_finite(outcomes: Sequence[EditOutcome], extra: Mapping[str, Metric] | None = None) -> dict[str, dict[str, Any]]:
    """Counts the infinite and NaN values of each measure that has any, and lists the records that have them."""
    counts: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        prefix = f"{outcome.probe.kind}/{outcome.probe.group}".rstrip("/")
        for name, value in measures_of(outcome, extra).items():
            if not math.isfinite(value):
                entry = counts.setdefault(f"{prefix}/{name}", {"outcomes": 0, "records": []})
                entry["outcomes"] += 1
                if outcome.record_id not in entry["records"]:
                    entry["records"].append(outcome.record_id)
    return counts


class TestReport(Callback):
    """Writes metrics.json and predictions.jsonl into the run's folder after a test, and prints a table.

    After a prediction it writes predictions.jsonl alone.

    Args:
        folder: Where to write; the first logger's run folder by default.
        show: Whether to print the table and the paths of the files.
    """

    def __init__(self, folder: str | None = None, show: bool = True) -> None:
        self.folder, self.show = folder, show
        self._outcomes: list[EditOutcome] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clears the outcomes."""
        self._outcomes = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps the outcomes of a batch."""
        self._outcomes += outputs["outcomes"]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clears the outcomes."""
        self._outcomes = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps the outcomes of a batch."""
        self._outcomes += outputs.outcomes

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the outcomes of all processes and writes them on the first."""
        outcomes, folder = _gathered(self._outcomes, trainer), self._folder(trainer)
        if trainer.is_global_zero and isinstance(pl_module, EditingModule):
            path = folder / PREDICTIONS_FILE
            _write_predictions(path, outcomes, pl_module)
            print_line(f"predictions  {path}")

    def _folder(self, trainer: Trainer) -> Path:
        # Every process must call this: the trainer broadcasts its folder.
        return Path(self.folder or trainer.log_dir or trainer.default_root_dir)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the outcomes of all processes, and writes and prints the results on the first."""
        if not isinstance(pl_module, EditingModule):
            return
        outcomes, folder = _gathered(self._outcomes, trainer), self._folder(trainer)
        left_out = _gathered(pl_module.protocol("test").left_out, trainer)
        if not trainer.is_global_zero:
            return
        measures = {
            name.removeprefix("test/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        _write_predictions(folder / PREDICTIONS_FILE, outcomes, pl_module)
        write_json(folder / METRICS_FILE, self._summary(measures, outcomes, left_out, trainer, pl_module))
        if not self.show:
            return
        print_measures(measures, outcomes, pl_module.protocol("test").description)
        print_line(f"metrics      {folder / METRICS_FILE}\npredictions  {folder / PREDICTIONS_FILE}")

    @staticmethod
    def _summary(
        measures: dict[str, float],
        outcomes: list[EditOutcome],
        left_out: list[str],
        trainer: Trainer,
        module: EditingModule,
    ) -> dict[str, Any]:
        datamodule: Any = getattr(trainer, "datamodule", None)
        report = datamodule.reports.get("test") if datamodule is not None else None
        protocol = module.protocol("test")
        return {
            "metrics": measures,
            "average": module.average,
            "protocol": protocol.description,
            "stopped_after": protocol.stopped_after,
            "left_out": left_out,
            "counts": {
                "records": len({outcome.record_id for outcome in outcomes}),
                "probes": dict(Counter(f"{outcome.probe.kind}/{outcome.probe.group}" for outcome in outcomes)),
            },
            "not_finite": not_finite(outcomes, module.extra_metrics),
            "costs": module.costs.summary(module.language_model.device),
            "data": report.summary() if report is not None else None,
            **({"scope_curve": curve} if (curve := scope_curve(outcomes)) else {}),
            "findings": module.editor.findings(module.language_model),
            "settings": {
                "editor": {"name": type(module.editor).__name__, **module.editor.hyperparameters},
                "language_model": vars(module.settings),
                "evaluation": asdict(module.evaluation),
                "checkpoint": trainer.ckpt_path,
            },
            "seed": _seed(),
            "base": module.language_model.fingerprint.to_dict() | {"samples": None},
            "versions": package_versions(),
        }


def _seed() -> int | None:
    import os

    value = os.environ.get("PL_GLOBAL_SEED")
    return int(value) if value else None


def _gathered(items: list[T], trainer: Trainer) -> list[T]:
    """Concatenates the lists of all processes."""
    if trainer.world_size == 1:
        return items
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def _write_predictions(path: Path, outcomes: list[EditOutcome], module: EditingModule) -> None:
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            line = finite_json(prediction(outcome, module.encoder.decode, module.extra_metrics))
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


_COLUMNS = (
    ("before", "token_accuracy_before"),
    ("tokens", "token_accuracy"),
    ("all", "all_tokens_match"),
    ("exact", "exact_match"),
    ("holds", "containment"),
    ("beats", "probability_score"),
    ("same", "self_agreement"),
    ("text", "generation_agreement"),
    ("KL", "kl_divergence"),
)
_SHOWN_RECORDS = 5
_LEGEND = """\
teacher-forced   before, tokens: share of right tokens, unedited and edited; all: every token is right
free generation  exact: the answer, then the clause ends; holds: it contains the answer
probability      beats: the answer is more probable than its rival
unedited model   same: predicts the same tokens; text: generates the same text; KL: divergence in nats"""


def print_measures(measures: dict[str, float], outcomes: list[EditOutcome], protocol: str) -> None:
    """Prints a table with one row per kind and group of probes."""
    rows = dict.fromkeys(name.rpartition("/")[0] for name in measures if "/" in name)
    table = Table(
        box=SIMPLE,
        padding=(0, 0, 0, 1),
        title=f"{len({outcome.record_id for outcome in outcomes})} records, {protocol}",
    )
    table.add_column("probes", overflow="fold", min_width=14)
    for title, _ in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [measures.get(f"{row}/{name}") for _, name in _COLUMNS]
        if any(cell is not None for cell in cells):
            table.add_row(
                escape(row.replace("/", "\n  ")),
                *("–" if cell is None else f"{cell:.2f}" if math.isfinite(cell) else "not finite" for cell in cells),
            )
    console = Console()
    console.print(table)
    print_line(_LEGEND)
    for name, entry in not_finite(outcomes).items():
        records = ", ".join(entry["records"][:_SHOWN_RECORDS])
        console.print(
            f"not finite       {name}: {entry['outcomes']} outcomes, of the records {records}", soft_wrap=True,
            highlight=False, markup=False, style="bold red",
        )  # fmt: skip
    for row in rows:
        after, before = (measures.get(f"{row}/{name}") for name in ("ngram_entropy", "ngram_entropy_before"))
        if after is not None and before is not None:
            print_line(f"{row:<16} n-gram entropy of long generations: {after:.2f} bits, unedited {before:.2f}")
        for name, title in (("sentiment_score", "score"), ("generated_sentiment", "of generations")):
            after, before = (measures.get(f"{row}/{measure}") for measure in (name, f"{name}_before"))
            if after is not None and before is not None:
                print_line(f"{row:<16} {title}: {after:.2f}, unedited {before:.2f}")
