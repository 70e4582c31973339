"""200 CounterFact edits in sequence: how well earlier edits, and the model itself, are retained.

python -m benchmarks.sequential_edits --data FOLDER [--methods NAME …] [--edits N]

FOLDER holds the published files. ROME edits one record after another, MEMIT and AlphaEdit ten at a time. Statistics are
those of benchmarks.locating; perplexity is measured on WikiText-2's test.txt. An interrupted run resumes at the edit
where it stopped. Writes the numbers, and the curves as a picture beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.environment import read_result, write_result
from benchmarks.evaluating import settings_of
from benchmarks.locating import counterfact, fitted_statistics, options_of
from lightning_edit.editors.configured import configured_editor
from lightning_edit.errors import EditError
from lightning_edit.metrics import edit_metrics
from lightning_edit.models import load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator, SequentialSettings
from lightning_edit.modules.sequential import SequentialProtocol
from lightning_edit.records import group_names

AT_A_TIME = {"rome": 1, "memit": 10, "alphaedit": 10}
EVERY = 40


def main() -> None:
    parser = options_of(__doc__, list(AT_A_TIME))
    parser.add_argument("--edits", type=int, default=200)
    options = parser.parse_args()

    statistics = fitted_statistics(options.data, options.work)
    model = load_language_model("smollm2-135m-instruct")
    records = counterfact(options.data)[: options.edits]
    result: dict[str, Any] = read_result(__file__).get("methods", {})
    for method in options.methods:
        editor = configured_editor(f"configs/editor/{method}.yaml", statistics=str(statistics))
        editor.setup(model)
        folder = options.work / f"sequence-{method}"
        settings = SequentialSettings(
            every=EVERY, text=str(next(options.data.rglob("test.txt"))), tokens=10_240, folder=str(folder)
        )
        evaluator = Evaluator(model, EvaluationSettings(generate=False, sequential=settings))
        size = AT_A_TIME[method]
        groups = [records[start : start + size] for start in range(0, len(records), size)]
        run = SequentialProtocol(model, editor, evaluator, settings, groups, folder)
        for number in range(len(groups)):
            run.step([run.groups[number]])
            print(method, f"{run.edited}/{len(records)} edits", flush=True)
        result[method] = {
            "settings": settings_of(editor),
            "records in an edit": size,
            "schedule": run.rows,
            "undo": undone(run),
        }
        write_result(__file__, {"methods": result})
    draw(result, Path(__file__).with_suffix(".png"))


def undone(run: SequentialProtocol) -> dict[str, Any]:
    """Edit success of the last edit's records with and without it, and the error of undoing the first edit alone."""
    sequence, records = run.sequence, run.groups[-1]
    result: dict[str, Any] = {}
    for name, edits in (("with the last edit", sequence), ("without it", sequence.without(sequence.ids[-1]))):
        with edits.applied(run.model) as scorer:
            outcomes = run.evaluator.evaluate_under(records, scorer)
        metrics = edit_metrics(group_names(records))
        metrics.update(outcomes)
        result[name] = round(float(metrics.compute()["edit_success/token_accuracy"]), 4)
    try:
        sequence.without(sequence.ids[0])
    except EditError as error:
        result["undoing the first edit alone"] = str(error)[:200]
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws retention, generalization, locality and perplexity against the number of edits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    curves = (
        ("edit success of earlier edits", lambda row: row["earlier"].get("edit_success/token_accuracy")),
        ("generalization of all edits", lambda row: row["all"].get("generalization/token_accuracy")),
        ("locality against the unedited model", lambda row: _mean(row["all"], "self_agreement")),
        ("perplexity (dashed: unedited)", lambda row: row["perplexity"]),
    )
    for axis, (title, value) in zip(axes, curves, strict=True):
        for method, entry in result.items():
            points = [(row["edits"], value(row)) for row in entry["schedule"]]
            points = [(edits, measure) for edits, measure in points if measure is not None]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
        axis.set(title=title, xlabel="edits")
        axis.set_ylim(bottom=0)
    before = max(row["perplexity_before"] for entry in result.values() for row in entry["schedule"])
    axes[-1].axhline(before, color="grey", linestyle="--", linewidth=1)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(f"drawn to {path}")


def _mean(measures: dict[str, float], name: str) -> float | None:
    values = [value for key, value in measures.items() if key.endswith(f"/{name}")]
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    main()
