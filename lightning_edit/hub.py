"""Repositories on the Hugging Face Hub: what is an id of one, uploads, and local copies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lightning_edit.errors import ConfigurationError, SourceNotFoundError

_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
MARK = "hf://"
"""In front of a repository's id where a path may stand as well."""
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


def marked(name: str | Path) -> str:
    """A path as it is where it exists; otherwise taken for a repository's id, with the mark.

    Args:
        name: A path, or an id with or without the mark.
    """
    text = str(name)
    is_id = not Path(text).exists() and "/" in text and could_be_hub_id(text)
    return f"{MARK}{text}" if is_id else text


def local_copy(name: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """A local path as it is, or the local copy of a repository on the Hub.

    Args:
        name: Path of a file or folder, or a repository's id behind "hf://": without the mark, a misspelled path such as
            "runs/edit" would be looked for on the Hub.
        files: Patterns of the files that are fetched.
        revision: Branch, tag or commit on the Hub.

    Raises:
        SourceNotFoundError: If the repository cannot be reached.
    """
    if not str(name).startswith(MARK):
        return Path(name)
    from huggingface_hub import snapshot_download

    repository = str(name).removeprefix(MARK)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the Hub client raises many kinds; each one means: not to be had from here
        raise SourceNotFoundError(
            f"{repository!r} is no repository that can be reached on the Hub "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


class PushOptions(TypedDict, total=False):
    """How something is published on the Hub.

    Args:
        private: Whether a new repository is private; it is public if not given.
        token: A token with the right to write; the one of the login if not given.
        licence: Licence of the upload, as the Hub names it, such as "apache-2.0"; that of the base model if not given.
        measures: Name to value of what was measured, for the card.
    """

    private: bool
    token: str | None
    licence: str | None
    measures: Mapping[str, Any] | None


def upload(folder: Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Uploads a folder to a repository on the Hub, which is created if there is none.

    Args:
        folder: The folder.
        repo_id: The repository, owner/name.
        private: Whether a new repository is private.
        token: A token with the right to write; the one of the login if none is given.

    Returns:
        Address of the commit.

    Raises:
        ConfigurationError: If the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    if "/" not in repo_id:
        raise ConfigurationError(f"repo: expected owner/name, found {repo_id!r}")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by lightning_edit")
    except Exception as error:  # the Hub client raises many kinds; each one means: not written, for the reason shown
        raise ConfigurationError(
            f"{repo_id} cannot be written on the Hub ({type(error).__name__}: {_first_line(error)}); log in with "
            "hf auth login, or give a token"
        ) from error
    return str(commit.commit_url)
