"""What fingerprints and checksums cost: their share of `edit` with a shipped checkpoint, and of the start of a run.

python -m benchmarks.durability_cost [--runs 5]

Each run is a process of its own, in which the functions that take fingerprints and digests are timed from within. The
start of a run is everything up to the first training step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.environment import write_result

_CHECKPOINT = "checkpoints/mend-smollm2-135m-instruct-zsre.ckpt"
_EDIT = [
    "edit", "--ckpt_path", _CHECKPOINT, "--prompt", "What city was Marie Curie born in?", "--subject", "Marie Curie",
    "--target", "Berlin",
]  # fmt: skip
_START = [
    "fit", "--config", "configs/experiment/mend-smollm2-worldfacts.yaml", "--trainer.max_steps", "1",
    "--trainer.limit_val_batches", "0", "--trainer.logger", "false", "--trainer.enable_checkpointing", "false",
    "--trainer.callbacks", "null",
]  # fmt: skip
COMMANDS = {"edit": _EDIT, "start of a run": _START}
_TIMED = (
    "lightning_edit.models.language_model.fingerprint",
    "lightning_edit.models.bundled.read_manifest",
    "lightning_edit.editors.checkpoint.state_digest",
    "lightning_edit.editors.checkpoint._check_sums",
    "lightning_edit.edits.base.write_manifest",
)


def _measure(name: str, begin: float) -> None:
    """Runs a command in this process and prints its seconds and those of each function, as JSON."""
    import importlib

    from lightning_edit.cli import main

    seconds = dict.fromkeys(_TIMED, 0.0)

    def timed(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[path] += time.perf_counter() - started

        return wrapper

    for path in _TIMED:
        module, _, function = path.rpartition(".")
        holder = importlib.import_module(module)
        setattr(holder, function, timed(path, getattr(holder, function)))
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        save = ["--save", f"{folder}/edit"] if name == "edit" else ["--trainer.default_root_dir", folder]
        status = main([*COMMANDS[name], *save])
    total = time.time() - begin
    print(json.dumps({"status": status, "total": total, **seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--here", nargs=2, metavar=("COMMAND", "BEGIN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        _measure(options.here[0], float(options.here[1]))
        return
    result: dict[str, Any] = {}
    for name in COMMANDS:
        rows = []
        # The first run fills the page cache, and is not counted.
        for number in range(options.runs + 1):
            command = [sys.executable, "-m", "benchmarks.durability_cost", "--here", name, str(time.time())]
            shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            if number:
                rows.append(json.loads(shown.stdout.splitlines()[-1]))
        medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        spent = sum(medians[path] for path in _TIMED)
        result[name] = {
            "seconds": medians["total"],
            "seconds of fingerprints and checksums": spent,
            "share": spent / (medians["total"] - spent),
            "parts": {path: medians[path] for path in _TIMED},
        }
        print(name, json.dumps(result[name], indent=1))
    write_result(__file__, result)


if __name__ == "__main__":
    main()
