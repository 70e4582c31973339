"""The search for a value by Adam, as published, and by L-BFGS with fewer evaluations: losses, seconds, and edits.

python -m benchmarks.value_search --data FOLDER [--methods NAME …] [--benchmarks NAME …] [--records N]

FOLDER holds the published files. Each method edits the first records of CounterFact and of KnowEdit's ZsRE with both
searches; single edits are timed in the same run, with the searches taking turns.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import mean, median
from typing import Any

from benchmarks.environment import write_result
from benchmarks.evaluating import evaluate, summary
from benchmarks.locating import changed_editor, counterfact, fitted_statistics, options_of, zsre
from lightning_edit.editors.locate import LocateEditor
from lightning_edit.editors.value_search import ValueResult, search_values
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRecord, EditRequest

BENCHMARKS = {"CounterFact": counterfact, "KnowEdit ZsRE": zsre}
SEARCHES: dict[str, dict[str, Any]] = {
    "adam, 25": {},
    "lbfgs, 10": {"optimizer": "lbfgs", "steps": 10},
    "lbfgs, 8": {"optimizer": "lbfgs", "steps": 8},
}
"""Name to changes of the settings in configs/editor."""
TIMED = 3
"""Single edits that are timed."""


def searched(model: LanguageModel, editor: LocateEditor, requests: list[EditRequest]) -> list[ValueResult]:
    """The values that an editor searches for some requests."""
    sites = model.layer_map.sites(editor.edited_layers(model))
    settings = replace(editor.search, loss_layer=editor.loss_layer_of(model, sites))
    templates = editor.contexts_for(model).templates
    return search_values(model, requests, templates, editor.taps(model, sites), settings)


def seconds_of_single_edits(
    model: LanguageModel, editors: dict[str, LocateEditor], records: list[EditRecord]
) -> dict[str, float]:
    """Seconds of an edit made by itself, the median over records; the searches take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in editors}
    for record in records:
        for name, editor in editors.items():
            begin = time.perf_counter()
            editor.edit(model, list(record.requests))
            seconds[name].append(time.perf_counter() - begin)
    return {name: round(median(times), 2) for name, times in seconds.items()}


def main() -> None:
    parser = options_of(__doc__, ["rome", "memit"])
    parser.add_argument("--benchmarks", nargs="*", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--records", type=int, default=20, help="records of each benchmark")
    options = parser.parse_args()

    statistics = fitted_statistics(options.data, options.work)
    model = load_language_model("smollm2-135m-instruct")
    evaluator = Evaluator(model, EvaluationSettings(fluency_tokens=0))
    result: dict[str, Any] = {}
    for method in options.methods:
        editors: dict[str, Any] = {
            name: changed_editor(method, statistics, changes) for name, changes in SEARCHES.items()
        }
        for editor in editors.values():
            editor.setup(model)
        for benchmark in options.benchmarks:
            records = BENCHMARKS[benchmark](options.data)[: options.records]
            seconds = seconds_of_single_edits(model, editors, records[:TIMED])
            for name, editor in editors.items():
                values = searched(model, editor, [record.requests[0] for record in records])
                # Adam's search ends with its last value, the other with its best.
                ends = [
                    min(value.losses) if editor.search.optimizer == "lbfgs" else value.losses[-1] for value in values
                ]
                path = options.work / f"search-{method}-{benchmark}-{name}.jsonl".replace(" ", "-")
                lines, _ = evaluate(evaluator, editor, records, path, 10)
                result.setdefault(method, {}).setdefault(benchmark, {})[name] = {
                    "loss at the end, mean": round(mean(ends), 4),
                    "loss at the end, median": round(median(ends), 4),
                    "largest": round(max(ends), 4),
                    "seconds of a single edit": seconds[name],
                    **summary(lines, {record.id for record in records}),
                }
                print(method, benchmark, name, result[method][benchmark][name], flush=True)
            write_result(__file__, {"methods": result})


if __name__ == "__main__":
    main()
