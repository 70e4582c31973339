"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """The user's cache folder of this package; LIGHTNING_EDIT_CACHE overrides it."""
    chosen = os.environ.get("LIGHTNING_EDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lightning_edit"


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``, which takes the place of ``path`` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: str | Path) -> None:
    """Deletes what a killed process left of writing ``path``; for files that one process alone writes."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*"):
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which takes its place when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in filter(Path.is_file, temporary.rglob("*")):
            # Some libraries write files that only their owner may read.
            file.chmod(0o666 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finite_json(values: Any) -> Any:
    """Plain data with null in place of numbers that JSON does not have (NaN and infinities)."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {key: finite_json(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite_json(value) for value in values]
    return values


def write_json(path: str | Path, values: Any) -> None:
    """Writes plain data as JSON; numbers that JSON does not have become null."""
    with replace_file(path) as temporary:
        text = json.dumps(finite_json(values), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
