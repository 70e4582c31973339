"""Editors with and without the chat template, side by side, from two grids.

lightning-edit compare --config @chat-template-smollm2
lightning-edit compare --config @chat-template-smollm2 --chat_template true --output runs/comparison/with-template
python -m benchmarks.chat_template runs/comparison/without-template runs/comparison/with-template
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result

MEASURES = {
    "edit success": "edit_success/token_accuracy",
    "edit success, generated": "edit_success/containment",
    "ends after the answer": "edit_success/exact_match",
    "generalization, generated": "generalization/containment",
    "locality": "locality/relation_specificity/self_agreement",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("without", type=Path, help="folder of the grid without the template")
    parser.add_argument("with_template", type=Path, help="folder of the grid with it")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for path in sorted((options.without / "cells").glob("*/*/*/metrics.json")):
        other = options.with_template / path.relative_to(options.without)
        if not other.is_file():
            continue
        pair = [json.loads(file.read_text(encoding="utf-8")) for file in (path, other)]
        if pair[0]["counts"] != pair[1]["counts"]:
            continue
        values = {
            name: {
                side: round(run["metrics"][key], 4)
                for side, run in zip(("without", "with"), pair, strict=True)
                if run["metrics"].get(key) is not None
            }
            for name, key in MEASURES.items()
        }
        result[path.parent.name] = {"records": pair[0]["counts"]["records"], **values}
    print("| | " + " | ".join(MEASURES) + " |\n|" + " --- |" * (len(MEASURES) + 1))
    for name, row in result.items():
        cells = [" → ".join(f"{value:.2f}" for value in row[measure].values()) for measure in MEASURES]
        print(f"| {name}, {row['records']} records | " + " | ".join(cells) + " |")
    write_result(__file__, {"editors": result})


if __name__ == "__main__":
    main()
