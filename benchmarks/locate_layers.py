"""The best layers for locate-then-edit methods in SmolLM2-135M-Instruct: causal traces and a small sweep.

python -m benchmarks.locate_layers --data FOLDER [--methods NAME …]

FOLDER holds the published files. The traced facts are those of known_1000 that the model knows. The sweep edits 8
CounterFact records (from number 1,000 on) and the last 8 of KnowEdit's ZsRE; for the contexts' weights the remaining 23
CounterFact records, for the length of the search the 24 ZsRE records before those; for Knowledge Neurons, which are
slow, only the 8 CounterFact records. None of them is among the records of locate_quality and sequential_edits. The
score is the mean of edit success, generalization and locality against the unedited model. Writes the numbers, and the
traces' averages as a picture beside them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.environment import read_result, write_result
from benchmarks.evaluating import evaluate, summary
from benchmarks.locating import changed_editor, counterfact, fitted_statistics, options_of, zsre
from lightning_edit.data.known import read_known_facts
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRecord
from lightning_edit.tracing.causal import TraceSettings
from lightning_edit.tracing.report import trace_facts

FACTS = 12
RECORDS = 8
SWEEP: dict[str, list[dict[str, Any]]] = {
    "rome": [{"layers": [layer]} for layer in (3, 5, 7, 9)],
    "memit": [
        *({"covariance_weight": weight} for weight in (15000.0, 1500.0, 150.0, 15.0)),
        *({"covariance_weight": 150.0, "layers": layers} for layers in ([2, 3, 4, 5, 6], [6, 7, 8, 9, 10])),
    ],
    "pmet": [
        *({"covariance_weight": weight} for weight in (15000.0, 1500.0, 150.0)),
        {"clamp_norm": 0.75, "learning_rate": 0.2},
        *({"layers": layers} for layers in ([7, 8], [8])),
        {"satisfied_weight": 1.0},
        {"weight_decay": 1e-3},
        *({"satisfied_weight": 1.0, "layers": layers} for layers in ([7, 8], [6, 7, 8], [8, 9])),
    ],
}
"""Method to changes of the settings that its sweep started from."""
START: dict[str, dict[str, Any]] = {
    "rome": {"separate_bare_prompt": False},
    "pmet": {"layers": [4, 5, 6, 7, 8], "satisfied_weight": 0.1},
}
"""The settings that the sweep started from, where configs/editor has since changed."""
CONTEXTS: dict[str, list[dict[str, Any]]] = {"rome": [{"separate_bare_prompt": False}, {"separate_bare_prompt": True}]}
"""Method to changes of its settings in configs/editor, for CounterFact records; most begin with their subject."""
SEARCHES: dict[str, list[dict[str, Any]]] = {
    "rome": [{"learning_rate": rate} for rate in (0.5, 1.0)],
    "memit": [{"learning_rate": rate} for rate in (0.5, 1.0)],
}
"""The same, for ZsRE records, whose answers are longer."""
NEURONS: dict[str, list[dict[str, Any]]] = {
    "knowledge-neurons": [
        {"signed": False, "target_weight": 8.0},
        *({"signed": True, "target_weight": weight} for weight in (8.0, 4.0, 2.0, 1.0)),
    ]
}
"""The same, for the values that the neurons are set to."""


def traced(model: LanguageModel, data: Path, folder: Path) -> dict[str, Any]:
    """The averages of causal traces, and the layers that they suggest."""
    path = folder / "traces.json"
    if not path.exists():
        facts = read_known_facts(str(next(data.rglob("known_1000.json"))))
        trace_facts(model, facts, TraceSettings(samples=5), folder, FACTS)
    shutil.copy(folder / "averages.png", Path(__file__).with_suffix(".png"))
    traces = json.loads(path.read_text())
    return {name: traces[name] for name in ("settings", "counts", "suggested_layer", "suggested_layers")}


def score(measures: dict[str, Any]) -> float:
    """Mean of edit success, generalization and locality, teacher-forced."""
    wanted = [measures["edit_success"]["token_accuracy"], measures["generalization"]["token_accuracy"]]
    locality = [values["self_agreement"] for name, values in measures.items() if name.startswith("locality/")]
    return float(round((sum(wanted) + sum(locality) / len(locality)) / 3, 4))


class Sweep:
    """Edits records with changed settings of a method, each on the clean model.

    Args:
        model: The model.
        statistics: Folder of its statistics.
        work: Folder of intermediate results.
    """

    def __init__(self, model: LanguageModel, statistics: Path, work: Path) -> None:
        self.model, self.statistics, self.work = model, statistics, work
        self.evaluator = Evaluator(model, EvaluationSettings(generate=False))

    def measure(
        self, method: str, start: dict[str, Any], changes: dict[str, Any], benchmarks: dict[str, list[EditRecord]]
    ) -> dict[str, Any]:
        """Benchmark to its measures."""
        editor = changed_editor(method, self.statistics, {**start, **changes})
        editor.setup(self.model)
        scores: dict[str, Any] = {}
        for benchmark, records in benchmarks.items():
            path = self.work / f"sweep-{method}-{named(changes)}-{benchmark}.jsonl".replace(" ", "")
            lines, _ = evaluate(self.evaluator, editor, records, path, RECORDS)
            measures = summary(lines, {record.id for record in records})
            scores[benchmark] = {"score": score(measures), **measures}
        print(method, named(changes), {key: value["score"] for key, value in scores.items()}, flush=True)
        return scores


def named(changes: dict[str, Any]) -> str:
    """Settings as text."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def main() -> None:
    options = options_of(__doc__, [*SWEEP, *NEURONS]).parse_args()
    statistics = fitted_statistics(options.data, options.work)
    model = load_language_model("smollm2-135m-instruct")
    sweep = Sweep(model, statistics, options.work)
    counterfacts = counterfact(options.data)
    few = {"CounterFact": counterfacts[1000 : 1000 + RECORDS], "KnowEdit ZsRE": zsre(options.data)[-RECORDS:]}
    more = {"CounterFact, more": counterfacts[1000 + RECORDS :]}
    fewest = {"CounterFact": few["CounterFact"]}
    longer = {"KnowEdit ZsRE, more": zsre(options.data)[-4 * RECORDS : -RECORDS]}
    kept = read_result(__file__)
    result: dict[str, Any] = kept.get("sweep", {})
    for method in options.methods:
        parts = [
            (few, SWEEP.get(method, []), START.get(method, {})),
            (more, CONTEXTS.get(method, []), {}),
            (longer, SEARCHES.get(method, []), {}),
            (fewest, NEURONS.get(method, []), {}),
        ]
        for benchmarks, settings, start in parts:
            for changes in settings:
                result.setdefault(method, {})[named(changes)] = sweep.measure(method, start, changes, benchmarks)
                write_result(__file__, {"traces": kept.get("traces"), "sweep": result})
    write_result(__file__, {"traces": traced(model, options.data, options.work / "traces"), "sweep": result})


if __name__ == "__main__":
    main()
