"""Locate-then-edit methods on SmolLM2-135M-Instruct: CounterFact and KnowEdit's ZsRE, each record on the clean model.

python -m benchmarks.locate_quality --data FOLDER [--methods NAME …] [--benchmarks NAME …] [--records N] [--generated N]

FOLDER holds the published files. Statistics come from WikiText-2's valid.txt, collected once into the work folder. The
settings are those of configs/editor; free generation and fluency are measured on the first records. An interrupted run
resumes where it stopped; a method's results are kept until it is measured again.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.environment import peak_memory, read_result, write_result
from benchmarks.evaluating import evaluate, settings_of, summary
from benchmarks.locating import changed_editor, counterfact, fitted_statistics, options_of, zsre
from lightning_edit.models import load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("rome", "memit", "emmet", "pmet", "alphaedit", "knowledge-neurons")},
    "rome-authors-contexts": ("rome", {"separate_bare_prompt": False}),
    **{f"{name}-learning-rate-1": (name, {"learning_rate": 1.0}) for name in ("rome", "memit")},
}
"""Name to a method and changes of its settings in configs/editor."""
BENCHMARKS = {"CounterFact": counterfact, "KnowEdit ZsRE": zsre}
BATCH = 10
FLUENCY_TOKENS = 100


def main() -> None:
    parser = options_of(__doc__, list(METHODS))
    parser.add_argument("--benchmarks", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--records", type=int, default=100, help="records of each benchmark")
    parser.add_argument(
        "--generated", type=int, default=50, help="how many of them are evaluated with free generation, too"
    )
    options = parser.parse_args()

    statistics = fitted_statistics(options.data, options.work)
    model = load_language_model("smollm2-135m-instruct")
    result: dict[str, Any] = read_result(__file__).get("methods", {})
    for name in options.benchmarks:
        records, generated = BENCHMARKS[name](options.data)[: options.records], options.generated
        parts = {
            "with generation": (records[:generated], EvaluationSettings(fluency_tokens=FLUENCY_TOKENS)),
            "without generation": (records[generated:], EvaluationSettings(generate=False)),
        }
        evaluators = {part: Evaluator(model, settings) for part, (_, settings) in parts.items()}
        for method in options.methods:
            name_of_config, changes = METHODS[method]
            editor = changed_editor(name_of_config, statistics, changes)
            editor.setup(model)
            lines: list[dict[str, Any]] = []
            earlier = result.setdefault(method, {}).get(name, {})
            seconds = dict(earlier.get("seconds", {}))
            for part, (some, _) in parts.items():
                path = options.work / f"{method}-{name}-{part}.jsonl".replace(" ", "-")
                predictions, spent = evaluate(evaluators[part], editor, some, path, BATCH)
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
