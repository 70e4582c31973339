"""What every result file says about where it was measured."""

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path
from typing import Any

import torch

from lightning_edit.edits.base import package_versions


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **package_versions(),
    }


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_result(script: str) -> dict[str, Any]:
    """What the result file beside a script holds; nothing where there is none."""
    path = Path(script).with_suffix(".json")
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_result(script: str, result: dict[str, Any]) -> None:
    """Writes the result file beside a script."""
    path = Path(script).with_suffix(".json")
    path.write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
