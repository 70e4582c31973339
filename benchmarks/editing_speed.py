"""Seconds per edit of fine-tuning, adapters, codebooks and side memories, beside a reference command.

python -m benchmarks.editing_speed --data FOLDER [--methods NAME …] [--records N] [--reference "COMMAND {method} {n}"]

Each method edits CounterFact's first records, as many side by side as it does by itself, and the first one alone. A
reference is a command that edits the same records one at a time and prints a JSON line with "seconds_per_edit"; it runs
between ours, in the same run. {method} becomes its name for the method, {n} the number of records.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import read_result, write_result
from benchmarks.locating import counterfact
from benchmarks.method_quality import editor_of
from lightning_edit.models import load_language_model

NAMES = {
    "ft-l": "FT-L",
    "ft-m": "FT-M",
    "lora": "LoRA",
    "adalora": "AdaLoRA",
    "grace": "GRACE",
    "melo": "MELO",
    "ike": "IKE",
    "wise": "WISE",
}
"""Our methods, and what the reference calls them."""


def reference_seconds(command: str, method: str, records: int) -> float:
    """What the reference command says of a method."""
    filled = command.replace("{method}", NAMES[method]).replace("{n}", str(records))
    done = subprocess.run(shlex.split(filled), check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds_per_edit"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--records", type=int, default=10)
    parser.add_argument("--reference", default="", help="command of a reference")
    parser.add_argument("--reference_records", type=int, default=2)
    parser.add_argument("--source", default="", help="what the reference is: repository and commit")
    options = parser.parse_args()
    model = load_language_model("smollm2-135m-instruct")
    requests = [record.requests[0] for record in counterfact(options.data)[: options.records]]
    result: dict[str, Any] = read_result(__file__).get("seconds per edit", {})
    for method in options.methods:
        editor = editor_of(method, "CounterFact", options.data)
        editor.setup(model)
        editor.prepare(model)
        start = time.perf_counter()
        editor.edit(model, requests[:1])
        alone = time.perf_counter() - start
        start = time.perf_counter()
        editor.edit_each(model, requests)
        together = (time.perf_counter() - start) / len(requests)
        row: dict[str, Any] = {"one edit": round(alone, 3), f"one of {len(requests)} side by side": round(together, 3)}
        if options.reference:
            other = reference_seconds(options.reference, method, options.reference_records)
            row |= {
                "reference": round(other, 3),
                "times faster, one edit": round(other / alone, 1),
                "times faster, side by side": round(other / together, 1),
                "threads": torch.get_num_threads(),
                "reference is": options.source,
            }
        result[method] = row
        print(method, row, flush=True)
        write_result(__file__, {"seconds per edit": result})


if __name__ == "__main__":
    main()
