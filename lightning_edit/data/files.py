"""Finds data files, locally or on the Hub, and decodes their JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edit.errors import DataFormatError, SourceNotFoundError
from lightning_edit.hub import could_be_hub_id


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataFormatError: If the file is not UTF-8, or not JSON (truncated, for example), with the position.
        SourceNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass the path of a data file, or of its folder")
    return decode_json(path.read_bytes(), path)


def decode_json(content: bytes, path: Path, record: int | None = None) -> Any:
    """Decodes JSON from a file, or from one of its lines.

    Args:
        content: The bytes.
        path: The file, for messages.
        record: Number of the line, if the content is one.

    Raises:
        DataFormatError: If it is not UTF-8 or not JSON, with the position; or a key occurs twice in one object.
    """
    try:
        # Some editors write a byte order mark, which is not part of the text.
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise DataFormatError(f"not valid UTF-8 at byte {error.start}; save the file as UTF-8", path, record) from error
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); is the file complete?",
            path,
            record,
        ) from error
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataFormatError(f"not usable JSON ({problem})", path, record) from error


def resolve_source(source: str, names: Sequence[str]) -> Path:
    """Finds a benchmark's file: a local file, a local folder with one of ``names`` in it, or a data set on the Hub.

    Args:
        source: Path of a file or folder, or a Hub id such as "zjunlp/KnowEdit".
        names: File names of the benchmark's published layout, by preference; parent folders are optional.

    Raises:
        SourceNotFoundError: If nothing is found; the message says what to pass.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            matches = sorted(path.rglob(Path(name).name))
            if matches:
                return matches[0]
        raise SourceNotFoundError(f"{path}: the folder has none of {list(names)}; pass the file itself")
    if "/" not in source or not could_be_hub_id(source):
        raise SourceNotFoundError(f"{source}: no such file or folder; pass a local path or a Hub id (owner/name)")
    return _download(source, names)


def _download(hub_id: str, names: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        listed = HfApi().list_repo_files(hub_id, repo_type="dataset")
        matches = [file for name in names for file in listed if Path(file).name == Path(name).name]
        if matches:
            return Path(hf_hub_download(hub_id, matches[0], repo_type="dataset"))
    except Exception as error:  # the Hub client's errors have no common base class; every one of them is reported
        raise SourceNotFoundError(
            f"the data set {hub_id!r} is neither a local path nor reachable on the Hub ({type(error).__name__}); "
            f"download one of {list(names)} and pass its path as source"
        ) from error
    raise SourceNotFoundError(f"the data set {hub_id!r} on the Hub has none of {list(names)}; pass a file's path")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object and rejects duplicate keys.

    Raises:
        ValueError: If a key occurs twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"the field {twice[0]!r} occurs twice in one object")
    return values
