"""Compares the measures of generated text with those of an earlier commit, on the same predictions.

git worktree add ../earlier 3c5620c
python -m benchmarks.corrected_measures --earlier ../earlier RUN [RUN …]

RUN is the folder of a test run, with predictions.jsonl. The earlier commit's functions score the same texts in a
separate process, so that only the measure differs. Some of the texts whose scores differ are listed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result
from lightning_edit.metrics.fluency import ngram_entropy
from lightning_edit.metrics.generation import containment, exact_match

_JUDGE = """
import json, sys
from lightning_edit.metrics.fluency import ngram_entropy
from lightning_edit.metrics.generation import containment, exact_match
for line in sys.stdin:
    text, aliases = json.loads(line)
    print(json.dumps([exact_match(text, aliases), containment(text, aliases), ngram_entropy(text)]))
"""
_NAMES = ("exact_match", "containment", "ngram_entropy")
_SHOWN = 10


def judged_earlier(folder: Path, texts: Sequence[tuple[str, list[str]]]) -> list[list[float]]:
    """The measures of an earlier commit for texts and their acceptable answers.

    Args:
        folder: Checkout of the commit.
        texts: Generated texts, each with its acceptable answers.
    """
    lines = "".join(json.dumps(pair) + "\n" for pair in texts)
    completed = subprocess.run(
        [sys.executable, "-c", _JUDGE], input=lines, capture_output=True, text=True, check=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    return [json.loads(line) for line in completed.stdout.splitlines()]


def compared(run: Path, earlier: Path) -> dict[str, Any]:
    """Means of both versions of each measure by kind of probe, and the outcomes whose scores differ."""
    outcomes = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    outcomes = [outcome for outcome in outcomes if outcome["after"]["generation"] is not None and outcome["expected"]]
    texts = [
        (outcome["after"]["generation"], [alias for aliases in outcome["expected"] for alias in aliases])
        for outcome in outcomes
    ]
    before = judged_earlier(earlier, texts)
    after = [[exact_match(*pair), containment(*pair), ngram_entropy(pair[0])] for pair in texts]
    sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
    moved = []
    for outcome, (text, aliases), old, new in zip(outcomes, texts, before, after, strict=True):
        for name, first, second in zip(_NAMES, old, new, strict=True):
            sums[f"{outcome['kind']}/{name}"].append((first, second))
            if name != "ngram_entropy" and first != second:
                moved.append({"measure": name, "then": first, "now": second, "answers": aliases, "generated": text})
    measures = {
        name: {"then": sum(one for one, _ in pairs) / len(pairs), "now": sum(one for _, one in pairs) / len(pairs)}
        for name, pairs in sums.items()
    }
    return {"outcomes": len(outcomes), "measures": measures, "moved": len(moved), "examples": moved[:_SHOWN]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True, help="checkout of the earlier commit")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of test runs")
    options = parser.parse_args()
    result = {"/".join(run.parts[-2:]): compared(run, options.earlier) for run in options.runs}
    for name, entry in result.items():
        print(f"{name}: {entry['outcomes']} outcomes, {entry['moved']} judged otherwise")
        for measure, values in entry["measures"].items():
            print(f"  {measure:<40} {values['then']:.4f} then, {values['now']:.4f} now")
    write_result(__file__, result)


if __name__ == "__main__":
    main()
