"""Manifests: JSON files with the digests of other files in their folder, and of their own content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DIGESTS = "digests"
SELF = "manifest"


def file_digest(path: Path) -> str:
    """Computes the SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(path: Path, values: dict[str, Any], files: Sequence[str]) -> None:
    """Writes a manifest with the digests of files in its folder, and of its own content.

    Args:
        path: The manifest.
        values: Its content.
        files: Names of the files.
    """
    digests = {name: file_digest(path.parent / name) for name in files}
    content = {**values, DIGESTS: digests}
    content[DIGESTS] = {**digests, SELF: _content_digest(content)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest, and checks its digest and those of its files.

    Returns:
        Its content, without the digests.

    Raises:
        ValueError: If it is not a manifest, or a file is damaged, missing, or belongs to another manifest.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
        digests = dict(content.pop(DIGESTS))
        content_digest = digests.pop(SELF)
    except (UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a manifest with digests ({type(error).__name__}: {error})") from error
    if content_digest != _content_digest({**content, DIGESTS: digests}):
        raise ValueError("its content does not match its digest: it was damaged or changed")
    for name, digest in digests.items():
        file = path.parent / str(name)
        if Path(str(name)).name != name or not file.is_file():
            raise ValueError(f"{name} is missing")
        if file_digest(file) != digest:
            raise ValueError(f"{name} does not match its digest: it was damaged, or belongs to another manifest")
    return dict(content)


def _content_digest(content: dict[str, Any]) -> str:
    return _digest(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
