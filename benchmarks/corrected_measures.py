"""Measures of generated text as they are now, beside those of an earlier commit, on the same predictions.

git worktree add ../earlier 3c5620c
python -m benchmarks.corrected_measures --earlier ../earlier RUN [RUN …]

RUN is the folder of a test run, with predictions.jsonl. The earlier commit's functions judge the same texts in a
process of their own, so that what differs is the measure alone. Some of the texts that they judge otherwise are listed.
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


def judged_earlier(folder: Path, asked: Sequence[tuple[str, list[str]]]) -> list[list[float]]:
    """What an earlier commit's measures say of texts and their acceptable answers.

    Args:
        folder: Checkout of the commit.
        asked: Texts and answers.
    """
    lines = "".join(json.dumps(own) + "\n" for own in asked)
    said = subprocess.run(
        [sys.executable, "-c", _JUDGE], input=lines, capture_output=True, text=True, check=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    return [json.loads(line) for line in said.stdout.splitlines()]


def compared(run: Path, earlier: Path) -> dict[str, Any]:
    """Means of both measures by kind of probe, and the outcomes that they judge differently."""
    outcomes = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    outcomes = [own for own in outcomes if own["after"]["generation"] is not None and own["expected"]]
    asked = [
        (own["after"]["generation"], [alias for aliases in own["expected"] for alias in aliases]) for own in outcomes
    ]
    before = judged_earlier(earlier, asked)
    after = [[exact_match(*own), containment(*own), ngram_entropy(own[0])] for own in asked]
    sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
    moved = []
    for outcome, (text, aliases), old, new in zip(outcomes, asked, before, after, strict=True):
        for name, first, second in zip(_NAMES, old, new, strict=True):
            sums[f"{outcome['kind']}/{name}"].append((first, second))
            if name != "ngram_entropy" and first != second:
                moved.append({"measure": name, "then": first, "now": second, "answers": aliases, "generated": text})
    measures = {
        name: {"then": sum(one for one, _ in own) / len(own), "now": sum(one for _, one in own) / len(own)}
        for name, own in sums.items()
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
