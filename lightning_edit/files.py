"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from lightning_edit.errors import DiskFullError

try:
    import fcntl
except ImportError:  # on Windows, what killed processes left stays
    fcntl = None  # type: ignore[assignment]  # None stands for the module that this system lacks

T = TypeVar("T")
_UNFINISHED = ".unfinished"
"""How the names of temporary files and folders end."""
_NO_LOCKS = -1
_READ_ATTEMPTS = 20
_NEARLY_FULL = 2**20
"""Free bytes below which a RuntimeError of a writer is taken for a full disk."""


def cache_folder() -> Path:
    """The user's cache folder of this package; LIGHTNING_EDIT_CACHE overrides it."""
    chosen = os.environ.get("LIGHTNING_EDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lightning_edit"


@contextmanager
def replace_file(path: str | Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary name beside ``path``, which takes the place of ``path`` when the block ends without error.

    What killed processes left of earlier attempts is deleted.

    Args:
        path: The file.
        size: Bytes that will be written, where they are known.

    Raises:
        DiskFullError: If the disk has no room for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path)
    check_space(path, size)
    with _full_disk_explained(path), _temporary(path, is_folder=False) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)


@contextmanager
def replace_folder(path: str | Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``, which takes its place when the block ends without error.

    The old folder is renamed aside, the new one in, and then the old one is deleted. A process that is killed between
    the two leaves the old folder aside, from where :func:`recover_folder` takes it back. Writers take turns. What
    killed processes left of earlier attempts is deleted.

    Args:
        path: The folder.
        size: Bytes that will be written, where they are known.

    Raises:
        DiskFullError: If the disk has no room for it.
    """
    # A link is followed, so that the folder that it names is replaced.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path)
    check_space(path, size)
    with _full_disk_explained(path), _temporary(path, is_folder=True) as temporary:
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


def recover_folder(path: str | Path) -> None:
    """Takes a folder back that a killed :func:`replace_folder` had moved aside; for readers, before they look."""
    path = Path(os.path.realpath(path))
    if not path.exists() and _aside(path).exists():
        with _lock_of(path):
            _recover(path)


def holds_something_else(path: str | Path, marker: str) -> bool:
    """Whether a folder holds anything but what is about to replace it.

    Args:
        path: The folder.
        marker: Name of the file by which the latter is recognised.
    """
    path = Path(os.path.realpath(path))
    if not path.exists():
        return False
    with _lock_of(path):
        _recover(path)
        return path.exists() and not (path / marker).exists() and any(path.iterdir())


def read_folder(path: str | Path, read: Callable[[], T]) -> T:
    """Reads a folder that other processes may replace; begins again where it was replaced in between.

    Args:
        path: The folder.
        read: Reads it, and raises where its files do not belong together.

    Returns:
        What ``read`` returned.
    """
    path = Path(os.path.realpath(path))
    for _ in range(_READ_ATTEMPTS):
        recover_folder(path)
        before = _identity(path)
        try:
            result = read()
        except Exception:  # raised again, unless the folder was replaced while it was read
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return result
    return read()


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes when a folder is replaced; numbers of inodes alone are used again."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def remove_unfinished(path: str | Path) -> None:
    """Deletes what killed processes left of writing ``path``; what a living process is writing stays."""
    path = Path(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(_UNFINISHED)}")
    for candidate in path.parent.glob(f".*{_UNFINISHED}"):
        if name.fullmatch(candidate.name):
            _remove_abandoned(candidate)


def check_space(path: str | Path, size: int) -> None:
    """Refuses to write what does not fit on the disk.

    Args:
        path: The file or folder that is to be written.
        size: Its bytes.

    Raises:
        DiskFullError: If there is less room than that.
    """
    folder = next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskFullError(
            f"{path}: needs {size / 1e6:.1f} MB, and the disk has {free / 1e6:.1f} MB free; make room, or write "
            "elsewhere"
        )


@contextmanager
def _temporary(path: Path, is_folder: bool) -> Iterator[Path]:
    """A temporary file or folder beside ``path``, locked for as long as this process lives and deleted at the end."""
    while True:
        if is_folder:
            name = tempfile.mkdtemp(_UNFINISHED, f".{path.name}.", path.parent)
        else:
            handle, name = tempfile.mkstemp(_UNFINISHED, f".{path.name}.", path.parent)
            os.close(handle)
        temporary = Path(name)
        lock = _lock_alive(temporary)
        # Another process may have taken it for abandoned before it was locked.
        if lock is not None and temporary.exists():
            break
        _unlock(lock)
        _delete(temporary)
    try:
        yield temporary
    finally:
        _delete(temporary)
        _unlock(lock)


def _lock_alive(path: Path) -> int | None:
    """Locks a temporary file or folder, so that others know its writer lives; the kernel unlocks it with the process.

    Returns:
        The descriptor that holds the lock; None if another process holds it, or it is gone; :data:`_NO_LOCKS` where
        the system or the file system has no locks.
    """
    if fcntl is None:
        return _NO_LOCKS
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        return _NO_LOCKS
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None and descriptor != _NO_LOCKS:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    lock = _lock_alive(path)
    if lock is not None and lock != _NO_LOCKS:
        _delete(path)
        _unlock(lock)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _recover(path: Path) -> None:
    """Undoes or ends a replacement whose process was killed, under the lock."""
    if path.exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
    elif _aside(path).exists():
        os.replace(_aside(path), path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}~")


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def _full_disk_explained(path: Path) -> Iterator[None]:
    """Turns what libraries raise when a disk is full into one error.

    Raises:
        DiskFullError: If that is what happened.
    """
    try:
        yield
    except Exception as error:  # libraries raise many kinds for a full disk; others are raised again
        if not is_disk_full(error, path.parent):
            raise
        raise DiskFullError(f"{path}: the disk is full; what was there is as it was") from error


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error comes from a full disk: an OSError, or what torch and safetensors raise in its place.

    Args:
        error: The error.
        folder: Where something was being written.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left on device" in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _NEARLY_FULL


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
