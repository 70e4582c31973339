"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import errno
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

from filelock import FileLock

from lightning_edit.errors import ConfigurationError


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
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigurationError(f"{path}: the disk is full; the file is as it was") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: str | Path) -> None:
    """Deletes what a killed process left of writing ``path``; for files that one process alone writes."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*"):
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which takes its place when the block ends without error.

    The old folder is renamed aside, the new one in, and then the old one is deleted. A process that is killed between
    the two leaves the old folder aside, from where :func:`recover_folder` takes it back. Writers take turns.
    """
    # A link is followed, so that the folder that it names is replaced.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in filter(Path.is_file, temporary.rglob("*")):
            # Some libraries write files that only their owner may read.
            file.chmod(0o666 & ~_umask())
            _sync(file)
        with _lock_of(path):
            _recover(path)
            aside = _aside(path)
            if path.exists():
                os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigurationError(f"{path}: the disk is full; nothing was written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Takes a folder back that a killed :func:`replace_folder` had moved aside; for readers, before they look."""
    path = Path(os.path.realpath(path))
    if not path.exists() and _aside(path).exists():
        with _lock_of(path):
            _recover(path)


def _recover(path: Path) -> None:
    if not path.exists() and _aside(path).exists():
        os.replace(_aside(path), path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}~")


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


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
