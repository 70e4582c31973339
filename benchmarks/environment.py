"""The environment that every result file records, and reading and writing result files."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_edit.edits.provenance import package_versions


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **package_versions(),
    }


def _processor() -> str:
    """The processor's name, and whether it has AVX-512."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {'with' if 'avx512f' in text else 'without'} AVX-512"


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_result(script: str) -> dict[str, Any]:
    """The contents of the result file beside a script; empty if there is none."""
    path = Path(script).with_suffix(".json")
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def in_a_process(module: str, data: Path, name: str) -> dict[str, Any]:
    """Measures one part of a benchmark in a separate process, so that its peak memory is its own.

    Args:
        module: Name of the benchmark, which prints its result as the last line of ``--here NAME``.
        data: Folder of the published files.
        name: The part.
    """
    command = [sys.executable, "-m", module, "--data", str(data), "--here", name]
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


def write_result(script: str, result: dict[str, Any]) -> None:
    """Writes the result file beside a script."""
    path = Path(script).with_suffix(".json")
    path.write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
