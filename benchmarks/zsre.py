"""Trained editors on KnowEdit's ZsRE, beside the plain gradient step that MEND starts from.

python -m benchmarks.zsre --data FOLDER [--checkpoint CKPT [CKPT …]] [--records N]

FOLDER holds the published files. The editors are trained beforehand, each with its own experiment:
    lightning-edit fit --config configs/experiment/mend-smollm2-zsre.yaml --data.train.init_args.source …
The step size of the gradient step is chosen on training records. MALMEN edits 64 records jointly, the others each
record on the clean model. Every batch of records is written as soon as it is evaluated, so that an interrupted run
resumes where it stopped; an editor's results are kept until it is measured again.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.environment import read_result, write_result
from benchmarks.evaluating import evaluate, routed_at, summary
from lightning_edit.data import KnowEditZsRE, ZsRE
from lightning_edit.editors import Editor, GradientStep, load_editor
from lightning_edit.editors.checkpoint import read_checkpoint
from lightning_edit.metrics import edit_metrics
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRecord, EditRequest, group_names

STEP_SIZES = (0.01, 0.03, 0.1, 0.3)
BATCH = 16
JOINT = {"MALMEN": 64}
"""Number of records edited jointly; one for editors that are not listed."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of routers; results above the editor's threshold are exact: probes below it get the unedited model's answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--checkpoint", nargs="*", default=[], help="checkpoints of editors trained on ZsRE")
    parser.add_argument("--records", type=int, help="test on the first N records only")
    parser.add_argument("--work", type=Path, default=Path("runs/zsre"), help="where intermediate results are kept")
    options = parser.parse_args()

    model = load_language_model("smollm2-135m-instruct")
    training = ZsRE(str(next(options.data.rglob("zsre_mend_train_10000*.json"))), split="train").read().records
    records = KnowEditZsRE(str(options.data), limit=options.records).read().records
    seen = {record.requests[0].subject for record in training}
    result: dict[str, Any] = read_result(__file__).get("editors", {})
    unseen = {record.id for record in records if record.requests[0].subject not in seen}
    requests = {record.id: record.requests[0] for record in records}
    evaluator = Evaluator(model, EvaluationSettings())
    for checkpoint in (None, *options.checkpoint):
        if checkpoint is None:
            editor: Editor = GradientStep(step_size=choose_step_size(model, training[-32:]))
        else:
            editor = load_editor(checkpoint, model)
        name = type(editor).__name__
        joint = JOINT.get(name, 1)
        lines, seconds = evaluate(evaluator, editor, records, options.work / f"{name}.jsonl", max(BATCH, joint), joint)
        result[name] = {
            "settings": editor.hyperparameters,
            "records edited jointly": joint,
            "checkpoint": describe_checkpoint(checkpoint) if checkpoint else None,
            "seconds": seconds or result.get(name, {}).get("seconds"),
            "all records": summary(lines, {record.id for record in records}),
            "records whose subject is not in the training file": summary(lines, unseen),
            "locality by wording": locality_by_wording(lines, requests),
        }
        if "scope_score" in lines[0]["measures"]:
            result[name]["at other thresholds"] = {
                str(threshold): thresholds(lines, threshold, requests) for threshold in THRESHOLDS
            }
        print(name, json.dumps(result[name], indent=1))
        write_result(__file__, {"editors": result})


def words_apart_from(subject: str, text: str) -> set[str]:
    """The words of four letters or more in a text, without its subject."""
    return set(re.findall(r"[^\W\d_]{4,}", text.casefold().replace(subject.casefold(), " ")))


def locality_by_wording(lines: list[dict[str, Any]], requests: dict[str, EditRequest]) -> dict[str, Any]:
    """Locality of probes that share a word of four letters or more with the edited prompt (subject excluded), or none.

    Most of those that do ask for the edited fact itself ("The mother of Catreus is"): a right answer fails them.

    Args:
        lines: Predictions.
        requests: The edited request of each record.
    """
    scores: dict[str, list[float]] = {"a word in common": [], "no word in common": []}
    for line in lines:
        if line["kind"] == "locality":
            request = requests[line["record"]]
            edited, asked = (words_apart_from(request.subject, text) for text in (request.prompt, line["prompt"]))
            values = scores["a word in common" if edited & asked else "no word in common"]
            values.append(line["measures"]["self_agreement"])
    return {
        name: {"probes": len(values), "self_agreement": round(sum(values) / len(values), 4)}
        for name, values in scores.items()
        if values
    }


def thresholds(lines: list[dict[str, Any]], threshold: float, requests: dict[str, EditRequest]) -> dict[str, Any]:
    """The main measures with another threshold."""
    routed = routed_at(lines, threshold)
    every = summary(routed, {line["record"] for line in lines})
    wanted = ("token_accuracy", "self_agreement", "containment", "generation_agreement", "scope_hit")
    main = {
        kind: {name: measures[name] for name in wanted if name in measures}
        for kind, measures in every.items()
        if kind.startswith(("edit_success", "generalization", "locality"))
    }
    return {**main, "locality by wording": locality_by_wording(routed, requests)}


def describe_checkpoint(path: str) -> dict[str, Any]:
    """Sizes of the checkpoint file, with the optimiser's state, and of the editor alone."""
    state = read_checkpoint(path)["state_dict"]
    editor = sum(value.numel() * value.element_size() for value in state.values())
    return {"megabytes": round(Path(path).stat().st_size / 1e6, 1), "editor_megabytes": round(editor / 1e6, 1)}


def choose_step_size(model: LanguageModel, records: list[EditRecord]) -> float:
    """The step size with the best mean of edit success, generalization and locality."""
    evaluator = Evaluator(model, EvaluationSettings(generate=False))
    scores = {}
    for size in STEP_SIZES:
        metrics = edit_metrics(group_names(records))
        edits = GradientStep(step_size=size).edit_each_group(model, [record.requests for record in records])
        metrics.update(evaluator.evaluate(records, edits))
        values = {name: float(value) for name, value in metrics.compute().items()}
        wanted = ("edit_success/token_accuracy", "generalization/token_accuracy", "/self_agreement")
        chosen = [value for name, value in values.items() if name.endswith(wanted)]
        scores[size] = sum(chosen) / len(chosen)
    return max(scores, key=lambda size: scores[size])


if __name__ == "__main__":
    main()
