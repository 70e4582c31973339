"""Atomic writing of files and folders."""

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
except ImportError:  # on Windows, leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]  # None marks the missing module

T = TypeVar("T")
_UNFINISHED = ".unfinished"
"""Suffix of temporary files and folders."""
_NO_LOCKS = -1
_READ_ATTEMPTS = 20
_NEARLY_FULL = 2**20
"""Free bytes below which a writer's RuntimeError is attributed to a full disk."""


def cache_folder() -> Path:
    """Returns the package's cache folder; LIGHTNING_EDIT_CACHE overrides it."""
    chosen = os.environ.get("LIGHTNING_EDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lightning_edit"


@contextmanager
def replace_file(path: str | Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary file in the same folder, which replaces ``path`` when the block ends without error.

    Leftovers of killed processes are deleted.

    Args:
        path: The file.
        size: Number of bytes to be written, if known.

    Raises:
        DiskFullError: If the disk is full.
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
    """Yields a temporary folder, which replaces ``path`` when the block ends without error.

    The old folder is renamed to a backup, the new one takes its name, and the backup is deleted. If the process is
    killed in between, :func:`recover_folder` restores the backup. A lock serialises writers. Leftovers of killed
    processes are deleted.

    Args:
        path: The folder.
        size: Number of bytes to be written, if known.

    Raises:
        DiskFullError: If the disk is full.
    """
    # Follows a link, to replace the folder that it points to.
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
            backup = _backup_of(path)
            if path.exists():
                os.replace(path, backup)
            os.replace(temporary, path)
            shutil.rmtree(backup, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Restores the backup of a killed :func:`replace_folder`; to be called before reading the folder."""
    path = Path(os.path.realpath(path))
    if not path.exists() and _backup_of(path).exists():
        with _lock_of(path):
            _recover(path)


def holds_something_else(path: str | Path, marker: str) -> bool:
    """Whether a folder has content of another kind, which must not be overwritten.

    Args:
        path: The folder.
        marker: Name of the file that identifies a folder of the expected kind.
    """
    path = Path(os.path.realpath(path))
    if not path.exists():
        return False
    with _lock_of(path):
        _recover(path)
        return path.exists() and not (path / marker).exists() and any(path.iterdir())


def read_folder(path: str | Path, read: Callable[[], T]) -> T:
    """Reads a folder that other processes may replace; retries if it was replaced meanwhile.

    Args:
        path: The folder.
        read: Reads the folder, and raises if its files are inconsistent.

    Returns:
        The result of ``read``.
    """
    path = Path(os.path.realpath(path))
    for _ in range(_READ_ATTEMPTS):
        recover_folder(path)
        before = _identity(path)
        try:
            result = read()
        except Exception:  # re-raised, unless the folder was replaced during the read
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return result
    return read()


def _identity(path: Path) -> tuple[int, int] | None:
    """Identifies a folder by inode and change time, as inode numbers are reused."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def remove_unfinished(path: str | Path) -> None:
    """Deletes leftovers of killed writers of ``path``, but not files still being written."""
    path = Path(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(_UNFINISHED)}")
    for candidate in path.parent.glob(f".*{_UNFINISHED}"):
        if name.fullmatch(candidate.name):
            _remove_abandoned(candidate)


def check_space(path: str | Path, size: int) -> None:
    """Checks that the disk has room for a file or folder.

    Args:
        path: The file or folder to be written.
        size: Its size in bytes.

    Raises:
        DiskFullError: If less space is free.
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
    """Yields a temporary file or folder next to ``path``, which is locked while in use and deleted at the end."""
    while True:
        if is_folder:
            name = tempfile.mkdtemp(_UNFINISHED, f".{path.name}.", path.parent)
        else:
            handle, name = tempfile.mkstemp(_UNFINISHED, f".{path.name}.", path.parent)
            os.close(handle)
        temporary = Path(name)
        lock = _lock_alive(temporary)
        # Another process may have deleted it as abandoned before it was locked.
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
    """Locks a temporary file or folder to show that its writer is alive; the kernel unlocks it at exit.

    Returns:
        Descriptor that holds the lock; None if another process holds it, or the path no longer exists;
        :data:`_NO_LOCKS` if the system or the file system has no locks.
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
    """Rolls back or completes an interrupted replacement; the caller holds the lock."""
    if path.exists():
        shutil.rmtree(_backup_of(path), ignore_errors=True)
    elif _backup_of(path).exists():
        os.replace(_backup_of(path), path)


def _backup_of(path: Path) -> Path:
    return path.with_name(f".{path.name}~")


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def _full_disk_explained(path: Path) -> Iterator[None]:
    """Converts the various errors that libraries raise on a full disk.

    Raises:
        DiskFullError: If the disk is full.
    """
    try:
        yield
    except Exception as error:  # libraries raise many exception types on a full disk; others are re-raised
        if not is_disk_full(error, path.parent):
            raise
        raise DiskFullError(f"{path}: the disk is full; the existing content is unchanged") from error


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error comes from a full disk: an OSError, or what torch and safetensors raise instead.

    Args:
        error: The error.
        folder: Folder that was being written to.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left on device" in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _NEARLY_FULL


def finite_json(values: Any) -> Any:
    """Replaces NaN and infinities in plain data by null, as JSON has neither."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {key: finite_json(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite_json(value) for value in values]
    return values


def write_json(path: str | Path, values: Any) -> None:
    """Writes plain data as JSON; NaN and infinities become null."""
    with replace_file(path) as temporary:
        text = json.dumps(finite_json(values), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
