"""The shipped MEND with and without a scope: its edits everywhere, and only where the shipped SERAC's scope lets them.

python -m benchmarks.scoped --data FOLDER [--benchmarks NAME …] [--records N] [--generated N] [--work FOLDER]

FOLDER holds the published files. Each record is edited on the clean model. The probes are asked once, with every prompt
in scope, which is MEND alone; results at a threshold are exact, since a prompt below it gets the unedited answer. Free
generation is measured on the first records. An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.environment import read_result, write_result
from benchmarks.evaluating import evaluate, routed_at, summary
from benchmarks.locating import counterfact, zsre
from lightning_edit.editors import MEND, SERAC, Scoped
from lightning_edit.models import load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.shipped import shipped_checkpoint

BENCHMARKS = {"KnowEdit ZsRE": zsre, "CounterFact": counterfact}
THRESHOLDS = (0.3, 0.4, 0.5, 0.7, 0.9)
BATCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/scoped"), help="folder for predictions")
    parser.add_argument("--benchmarks", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--generated", type=int, default=100, help="how many are evaluated with free generation, too")
    options = parser.parse_args()

    model = load_language_model("smollm2-135m-instruct")
    serac = SERAC.from_checkpoint(shipped_checkpoint("serac"), model)
    editor = Scoped.combined(MEND.from_checkpoint(shipped_checkpoint("mend"), model), serac, threshold=0.0).eval()
    editor.setup(model)
    result: dict[str, Any] = read_result(__file__).get("benchmarks", {})
    for name in options.benchmarks:
        records = BENCHMARKS[name](options.data)[: options.records]
        parts = {
            "with generation": (records[: options.generated], EvaluationSettings()),
            "without generation": (records[options.generated :], EvaluationSettings(generate=False)),
        }
        lines: list[dict[str, Any]] = []
        for part, (some, settings) in parts.items():
            path = options.work / f"{name}-{part}.jsonl".replace(" ", "-")
            lines += evaluate(Evaluator(model, settings), editor, some, path, BATCH)[0]
        ids = {record.id for record in records}
        result[name] = {
            "MEND": summary(lines, ids),
            **{f"scoped at {threshold}": summary(routed_at(lines, threshold), ids) for threshold in THRESHOLDS},
        }
        print(name, json.dumps(result[name], indent=1), flush=True)
        result[name]["records with free generation"] = min(options.generated, len(records))
        write_result(__file__, {"benchmarks": result})


if __name__ == "__main__":
    main()
