"""Locate-then-edit methods on SmolLM2-135M-Instruct: CounterFact and KnowEdit's ZsRE, each record on the clean model.

python -m benchmarks.locate_quality --data FOLDER [--methods NAME …] [--records N]

FOLDER holds the published files. Statistics come from WikiText-2's valid.txt, collected once into the work folder. The
settings are those of configs/editor; free generation and fluency are measured on the first half of the records. A run
that was stopped goes on where it was; what was measured of a method stays in the result until it is measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import peak_memory, read_result, write_result
from benchmarks.evaluating import evaluate, summary
from lightning_edit.commands import configured_editor
from lightning_edit.data import CounterFact, KnowEditZsRE
from lightning_edit.models import load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRecord

METHODS = ("rome", "memit", "emmet", "pmet", "alphaedit", "knowledge-neurons")
BATCH = 10
FLUENCY_TOKENS = 100


def collect_statistics(data: Path, folder: Path, layers: str) -> None:
    """Collects the statistics of the keys with the command that a user would type."""
    if folder.exists():
        return
    command = [sys.executable, "-m", "lightning_edit.cli", "fit"]
    command += ["--config", "configs/experiment/memit-smollm2-counterfact.yaml"]
    command += ["--model.editor.init_args.layers", layers, "--model.editor.init_args.statistics", str(folder)]
    command += ["--data.corpus.source", str(next(data.rglob("valid.txt"))), "--data.corpus.tokens", "1000000"]
    command += ["--data.test", "null"]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--records", type=int, default=100, help="records of each benchmark")
    parser.add_argument("--work", type=Path, default=Path("runs/locate"), help="where intermediate results are kept")
    options = parser.parse_args()

    statistics = options.work / "statistics"
    collect_statistics(options.data, statistics, "[4, 5, 6, 7, 8]")
    model = load_language_model("smollm2-135m-instruct")
    source = next(options.data.rglob("counterfact_original*.json"))
    benchmarks: dict[str, list[EditRecord]] = {
        "CounterFact": CounterFact(str(source), limit=options.records).read().records,
        "KnowEdit ZsRE": KnowEditZsRE(str(options.data), limit=options.records).read().records,
    }
    result: dict[str, Any] = read_result(__file__).get("methods", {})
    for name, records in benchmarks.items():
        half = len(records) // 2
        parts = {
            "with generation": (records[:half], EvaluationSettings(fluency_tokens=FLUENCY_TOKENS)),
            "without generation": (records[half:], EvaluationSettings(generate=False)),
        }
        evaluators = {part: Evaluator(model, settings) for part, (_, settings) in parts.items()}
        for method in options.methods:
            own = None if method == "knowledge-neurons" else str(statistics)
            editor = configured_editor(f"configs/editor/{method}.yaml", own)
            editor.setup(model)
            lines: list[dict[str, Any]] = []
            seconds = {}
            for part, (some, _) in parts.items():
                path = options.work / f"{method}-{name}-{part}.jsonl".replace(" ", "-")
                found, seconds[part] = evaluate(evaluators[part], editor, some, path, BATCH)
                lines += found
            result.setdefault(method, {})[name] = {
                "settings": editor.hyperparameters,
                "seconds": seconds,
                **summary(lines, {record.id for record in records}),
            }
            print(method, name, json.dumps(result[method][name], indent=1), flush=True)
            write_result(__file__, {"peak memory, bytes": peak_memory(), "methods": result})


if __name__ == "__main__":
    main()
