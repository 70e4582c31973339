"""Tells ids on the Hugging Face Hub from paths that do not exist, so that a misspelled path fails at once."""

from __future__ import annotations

import re
from pathlib import Path

_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_FILES = (
    ".json", ".jsonl", ".ndjson", ".csv", ".txt", ".parquet", ".gguf", ".safetensors", ".bin", ".pt", ".ckpt", ".yaml",
    ".yml",
)  # fmt: skip
"""Endings of files, which no id has."""


def could_be_hub_id(name: str) -> bool:
    """Whether a name that is no local path can be an id on the Hub: "name" or "owner/name".

    A name that ends like a file, or whose first part is a local folder, is taken for a misspelled path.

    Args:
        name: A name for which there is no local file or folder.
    """
    owner, slash, _ = name.partition("/")
    if not _ID.fullmatch(name) or name.startswith(".") or name.lower().endswith(_FILES):
        return False
    return not (slash and Path(owner).exists())
