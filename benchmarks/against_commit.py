"""Training, evaluation and value search against another checkout of this repository, alternating in one run.

python -m benchmarks.against_commit --old CHECKOUT --data FOLDER [--rounds N]

CHECKOUT is a worktree of the other commit (git worktree add CHECKOUT COMMIT). Each round runs both in a process of its
own, one after the other; the least seconds count, because other jobs can only add to them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result

PART = r"""
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
from lightning_edit.data import ZsRE
from lightning_edit.data.batches import TrainingCollator, TrainingRecords
from lightning_edit.editors import MEND, ROME
from lightning_edit.models import load_language_model
from lightning_edit.modules import EvaluationSettings, Evaluator, HypernetworkEditing
from lightning_edit.records import EditRequest

data = sys.argv[1]
model = load_language_model("smollm2-135m-instruct")
records = ZsRE(f"{data}/zsre/zsre_mend_train-1k.json", "train", limit=64).read().records
seconds = {}

torch.manual_seed(0)
module = HypernetworkEditing(MEND(rank=64))
module.attach(model)
module.log = lambda *_, **__: None
module.train()
collate, drawn = TrainingCollator(model.encoder), TrainingRecords(records, 0)
batches = [collate([drawn[0, index] for index in range(start, start + 8)]) for start in range(0, 64, 8)]
parameters = torch.optim.Adam(module.editor.parameters(), lr=1e-4)
for number, batch in enumerate(batches):
    if number == 2:
        start = time.perf_counter()
    module.training_step(batch, number).backward()
    parameters.step()
    parameters.zero_grad()
seconds["a training step of MEND on 8 records"] = (time.perf_counter() - start) / (len(batches) - 2)

editor = module.editor.eval()
evaluator = Evaluator(model, EvaluationSettings(generate=False))
requests = [list(record.requests) for record in records[:32]]
with evaluator.prepared(editor, records[:32]):
    edits = editor.edit_each_group(model, requests)
    evaluator.evaluate(records[:32], edits)
    start = time.perf_counter()
    # Cached states are an argument since they are no longer served behind the model's back.
    cached = {"passes": evaluator.passes} if hasattr(evaluator, "passes") else {}
    edits = editor.edit_each_group(model, requests, **cached)
    evaluator.evaluate(records[:32], edits)
    seconds["making and measuring 32 edits of MEND"] = time.perf_counter() - start

contexts = [["{}", "So: {}", "Well, {}", "And {}"]]
try:
    from lightning_edit.editors import ContextSettings, ValueSettings
    search = {"search": ValueSettings(steps=10), "contexts": ContextSettings(contexts)}
except ImportError:
    # Settings were arguments of the editor.
    search = {"steps": 10, "contexts": contexts}
rome = ROME(layers=[9], covariance="identity", **search)
facts = [EditRequest(f"The capital of {name} is", "Rome", name) for name in ("France", "Germany", "Brazil", "Japan")]
rome.edit_each(model, facts[:1])
start = time.perf_counter()
rome.edit_each(model, facts)
seconds["ten evaluations of ROME's search for four values"] = time.perf_counter() - start
print(json.dumps(seconds))
"""


def measured(checkout: Path, data: Path) -> dict[str, float]:
    """Seconds of each part in one checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", PART, str(data)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="worktree of the other commit")
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "-C", str(options.old), "rev-parse", "--short", "HEAD"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    runs: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for _ in range(options.rounds):
        runs["old"].append(measured(options.old, options.data))
        runs["new"].append(measured(Path(__file__).parents[1], options.data))
    parts: dict[str, Any] = {}
    for name in runs["new"][0]:
        old, new = (min(run[name] for run in runs[side]) for side in ("old", "new"))
        parts[name] = {"old": round(old, 4), "new": round(new, 4), "new / old": round(new / old, 3)}
        print(name, parts[name])
    write_result(__file__, {"old commit": commit, "rounds": options.rounds, "seconds": parts})


if __name__ == "__main__":
    main()
