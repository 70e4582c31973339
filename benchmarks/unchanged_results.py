"""Whether results are those of another checkout of this repository: shipped editors, and locate-then-edit updates.

python -m benchmarks.unchanged_results --old CHECKOUT --data FOLDER --work FOLDER [--records N]

CHECKOUT is a worktree of the other commit (git worktree add CHECKOUT COMMIT). Both run in processes of their own, with
its checkpoints, on the first N records of KnowEdit's ZsRE, and with the same contexts and second moments (of the
keys of these records' prompts) for updates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.environment import write_result

PART = r"""
import json, sys, warnings
from dataclasses import replace
import torch
from pathlib import Path
warnings.filterwarnings("ignore")
from safetensors.torch import save_file
from benchmarks.evaluating import evaluate, summary
from lightning_edit.data import KnowEditZsRE
from lightning_edit.components import build
from lightning_edit.editors import EMMET, MEMIT, PMET, ROME, AlphaEdit, Editor
from lightning_edit.editors.checkpoint import KEY, PREFIX
from lightning_edit.models import load_language_model
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRequest

data, work, limit, checkpoints = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
model = load_language_model("smollm2-135m-instruct")
records = KnowEditZsRE(data, limit=limit).read().records
layers = [4, 5, 6, 7, 8]
sites = [model.layer_map.site(layer) for layer in layers]
keys = {site.name: [] for site in sites}
handles = [
    site.module.register_forward_hook(lambda module, args, output, name=site.name: keys[name].append(args[0][0]))
    for site in sites
]
with torch.no_grad():
    for record in records:
        model.model(**model.tokenizer(record.requests[0].prompt, return_tensors="pt"))
for handle in handles:
    handle.remove()
moments = {name: (k := torch.cat(parts)).T @ k / len(k) + 1e-3 * torch.eye(k.shape[1]) for name, parts in keys.items()}
statistics = KeyStatistics(moments, Corpus("prompts", 1, 100_000, ""), model.name, model.fingerprint)
contexts = [["{}"], ["The fact is. {}", "As you know, {}", "Because of that. {}"]]
try:
    from lightning_edit.editors import ContextSettings

    def make(kind, **settings):
        search = replace(kind().search, steps=10)
        return kind(search=search, contexts=ContextSettings(contexts), **settings)
except ImportError:
    # Settings were arguments of the editor.
    def make(kind, **settings):
        return kind(steps=10, contexts=contexts, **settings)
facts = [EditRequest(f"The capital of {name} is", "Rome", name, id=name) for name in ("France", "Germany", "Brazil")]
editors = {
    "ROME": (make(ROME, layers=[5], original_keys=True), 1),
    "R-ROME": (make(ROME, layers=[5]), 1),
    "MEMIT": (make(MEMIT, layers=layers, covariance_weight=15000.0), 3),
    "EMMET": (make(EMMET, layers=[5], covariance_weight=1.0, constraint_ridge=0.1), 3),
    "PMET": (make(PMET, layers=layers, covariance_weight=15000.0), 3),
    "AlphaEdit": (make(AlphaEdit, layers=layers, threshold=0.02, ridge=10.0), 3),
}
for name, (editor, count) in editors.items():
    editor.setup(model)
    editor.use_statistics(statistics)
    edit = editor.edit(model, facts[:count])
    save_file({site: delta.dense().contiguous() for site, delta in edit.deltas.items()}, work / f"{name}.safetensors")
    print(name, flush=True)

measures = {}
evaluator = Evaluator(model, EvaluationSettings(generate=False))
for name, size, joint in (("mend", 16, 1), ("malmen", 64, 64), ("serac", 16, 1)):
    # Read by hand, as the file of one commit may lack the digest that the other one asks for.
    content = torch.load(f"{checkpoints}/{name}-smollm2-135m-instruct-zsre.ckpt", weights_only=True)
    editor = build(content[KEY]["editor"], Editor, name)
    editor.setup(model)
    editor.load_state_dict({key.removeprefix(PREFIX): value for key, value in content["state_dict"].items()})
    editor.eval()
    lines, _ = evaluate(evaluator, editor, records, work / f"{name}.jsonl", size, joint)
    measures[name] = summary(lines, {record.id for record in records})
print(json.dumps(measures))
"""
MEASURES = ("token_accuracy", "self_agreement", "kl_divergence")


def results_of(checkout: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The measures of the shipped editors in one checkout, which also writes its updates to ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    checkpoints = options.old.resolve() / "checkpoints"
    arguments = [options.data.resolve(), work.resolve(), options.records, checkpoints]
    command = [sys.executable, "-c", PART, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout)
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def relative_errors(old: Path, new: Path) -> dict[str, float]:
    """The largest relative Frobenius error over the sites of each method's update."""
    errors = {}
    for path in sorted(old.glob("*.safetensors")):
        expected, actual = load_file(path), load_file(new / path.name)
        assert expected.keys() == actual.keys(), path
        each = [float((actual[site] - expected[site]).norm() / expected[site].norm()) for site in expected]
        errors[path.stem] = float(f"{max(each):.2g}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="worktree of the other commit")
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--work", type=Path, required=True, help="folder for updates and predictions")
    parser.add_argument("--records", type=int, default=100, help="records of KnowEdit's ZsRE")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "-C", str(options.old), "rev-parse", "--short", "HEAD"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    old = results_of(options.old, options.work / "old", options)
    new = results_of(Path(__file__).parents[1], options.work / "new", options)
    measures: dict[str, Any] = {}
    for name, groups in old.items():
        for group, values in groups.items():
            if not isinstance(values, dict):
                continue
            # A measure may apply to fewer kinds of probes than at the other commit.
            for measure in (one for one in MEASURES if one in values and one in new[name][group]):
                pair = {"old": values[measure], "new": new[name][group][measure]}
                measures.setdefault(name, {}).setdefault(group, {})[measure] = pair
    largest = {
        name: max(abs(pair["new"] - pair["old"]) for of_group in groups.values() for pair in of_group.values())
        for name, groups in measures.items()
    }
    errors = relative_errors(options.work / "old", options.work / "new")
    print(json.dumps({"largest difference of a measure": largest, "relative errors": errors}, indent=1))
    write_result(
        __file__,
        {
            "old commit": commit,
            "records": options.records,
            "largest difference of a measure": largest,
            "relative error of updates": errors,
            "measures": measures,
        },
    )


if __name__ == "__main__":
    main()
