"""Speed of making and evaluating independent edits of SmolLM2-135M-Instruct, beside a reference implementation.

python -m benchmarks.evaluation_speed --data FOLDER [--reference LINES]

FOLDER holds the published files. Every record is edited by MEND on the clean model; its edit prompt, a rephrase and a
locality prompt are evaluated, teacher-forced, before and after the edit. The editor is untrained, because time does not
depend on training. LINES: see training_speed.py; the run's name is "MEND".
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import peak_memory, read_result, write_result
from lightning_edit.data import ZsRE
from lightning_edit.editors import MEND
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRecord

RECORDS = 160
SITES = [-6, -5, -4, -3, -2, -1]


def seconds_per_record(
    model: LanguageModel, records: list[EditRecord], batch: int, trunk_gigabytes: float, asked: bool
) -> float:
    """Seconds per record of editing and evaluation.

    Args:
        model: The base model.
        records: The records.
        batch: Records side by side.
        trunk_gigabytes: See :class:`EvaluationSettings`.
        asked: Whether the unedited model's answers are cached already, as in every validation but the first.
    """
    editor = MEND(sites=SITES, rank=64)
    editor.setup(model)
    editor.eval()
    evaluator = Evaluator(model, EvaluationSettings(generate=False, trunk_gigabytes=trunk_gigabytes))

    def run(some: list[EditRecord]) -> None:
        for start in range(0, len(some), batch):
            chunk = some[start : start + batch]
            with evaluator.prepared(editor, chunk):
                edits = editor.edit_each_group(model, [record.requests for record in chunk])
                evaluator.evaluate(chunk, edits)

    run(records if asked else records[-batch:])
    measured = records if asked else records[:-batch]
    start = time.perf_counter()
    run(measured)
    return round((time.perf_counter() - start) / len(measured), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--reference", type=Path, help="measurements of the reference implementations")
    options = parser.parse_args()
    model = load_language_model("smollm2-135m-instruct")
    source = ZsRE(str(next(options.data.rglob("zsre_mend_train_10000*.json"))), split="train", limit=RECORDS)
    records = source.read().records
    kept = read_result(__file__)
    references: list[dict[str, Any]] = kept.get("references", [])
    if options.reference:
        references = [json.loads(line) for line in options.reference.read_text().splitlines()]
    seconds = {
        "16 side by side": seconds_per_record(model, records, 16, 0.5, False),
        "16 side by side, unedited model asked before": seconds_per_record(model, records, 16, 0.5, True),
        "16 side by side, no hidden states used again": seconds_per_record(model, records, 16, 0.0, False),
        "one at a time": seconds_per_record(model, records[:49], 1, 0.5, False),
        "one at a time, no hidden states used again": seconds_per_record(model, records[:49], 1, 0.0, False),
    }
    result = {
        "records": len(records),
        "probes of a record": sum(len(record.all_probes) for record in records) / len(records),
        "seconds per record": seconds,
        "peak memory, bytes": peak_memory(),
        "references": references,
        "ratios": {
            f"{line['reference']} to {name}": round(line["seconds_per_record"] / value, 2)
            for line in references
            for name, value in seconds.items()
        },
    }
    print(json.dumps(result, indent=1))
    write_result(__file__, result)


if __name__ == "__main__":
    main()
