"""Fine-tuning, adapters, prompts, codebooks and side memories on SmolLM2-135M-Instruct.

python -m benchmarks.method_quality --data FOLDER [--methods NAME …] [--benchmarks NAME …] [--records N] [--generated N]

FOLDER holds the published files of CounterFact and KnowEdit's ZsRE. The settings are those of configs/editor; each
record is edited on the clean model, except for LocFT-BF, which edits all records at once. IKE's demonstrations come
from the training files. Free generation is measured on the first records. An interrupted run resumes where it stopped;
a method's results are kept until it is measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.environment import peak_memory, read_result, write_result
from benchmarks.evaluating import evaluate, settings_of, summary
from benchmarks.locating import counterfact, zsre
from lightning_edit.data import CounterFact, ZsRE
from lightning_edit.editors import Editor
from lightning_edit.editors.configured import configured_editor
from lightning_edit.models import load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.modules.retrieval import IndexesRecords

METHODS = ("ft-l", "ft-m", "locft-bf", "lora", "adalora", "ice", "ike", "scr", "grace", "wise", "melo")
JOINT = ("locft-bf",)
BENCHMARKS = {"CounterFact": counterfact, "KnowEdit ZsRE": zsre}
BATCH = 10


def editor_of(method: str, benchmark: str, data: Path) -> Editor:
    """The editor of a file in configs/editor, with its index built if it has one."""
    editor = configured_editor(f"configs/editor/{method}.yaml")
    if isinstance(editor, IndexesRecords):
        source = (
            CounterFact(str(data / "counterfact" / "counterfact-train.json"), "train", limit=2000)
            if benchmark == "CounterFact"
            else ZsRE(str(data / "zsre" / "zsre_mend_train-1k.json"), "train")
        )
        editor.index(source.read().records)
    return editor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("scratch/methods"), help="folder for predictions")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--benchmarks", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--records", type=int, default=100, help="records of each benchmark")
    parser.add_argument(
        "--generated", type=int, default=50, help="how many of them are evaluated with free generation, too"
    )
    options = parser.parse_args()

    model = load_language_model("smollm2-135m-instruct")
    result: dict[str, Any] = read_result(__file__).get("methods", {})
    for name in options.benchmarks:
        records = BENCHMARKS[name](options.data)[: options.records]
        parts = {
            "with generation": (records[: options.generated], EvaluationSettings()),
            "without generation": (records[options.generated :], EvaluationSettings(generate=False)),
        }
        evaluators = {part: Evaluator(model, settings) for part, (_, settings) in parts.items()}
        for method in options.methods:
            editor = editor_of(method, name, options.data)
            editor.setup(model)
            lines: list[dict[str, Any]] = []
            seconds = dict(result.setdefault(method, {}).get(name, {}).get("seconds", {}))
            for part, (some, _) in parts.items():
                path = options.work / f"{method}-{name}-{part}.jsonl".replace(" ", "-")
                size = max(len(some), 1) if method in JOINT else BATCH
                predictions, spent = evaluate(
                    evaluators[part], editor, some, path, size, size if method in JOINT else 1
                )
                seconds[part] = spent or seconds.get(part)
                lines += predictions
            result[method][name] = {
                "settings": settings_of(editor),
                "seconds": seconds,
                **summary(lines, {record.id for record in records}),
            }
            print(method, name, json.dumps(result[method][name], indent=1), flush=True)
            write_result(__file__, {"peak memory, bytes": peak_memory(), "methods": result})


if __name__ == "__main__":
    main()
