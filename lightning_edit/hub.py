"""Repositories on the Hugging Face Hub: ids, uploads and downloads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lightning_edit.errors import ConfigurationError, SourceNotFoundError

_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
MARK = "hf://"
"""Prefix of a repository id where a path is also accepted."""
_FILES = (
    ".json", ".jsonl", ".ndjson", ".csv", ".txt", ".parquet", ".gguf", ".safetensors", ".bin", ".pt", ".ckpt", ".yaml",
    ".yml",
)  # fmt: skip
"""File extensions, which no id has."""


def could_be_hub_id(name: str) -> bool:
    """Whether a name that is not a local path can be a Hub id: "name" or "owner/name".

    A name with a file extension, or whose first part is a local folder, counts as a misspelled path.

    Args:
        name: A name that no local file or folder has.
    """
    owner, slash, _ = name.partition("/")
    if not _ID.fullmatch(name) or name.startswith(".") or name.lower().endswith(_FILES):
        return False
    return not (slash and Path(owner).exists())


def marked(name: str | Path) -> str:
    """Adds "hf://" to a repository id; leaves existing paths unchanged.

    Args:
        name: A path, or an id with or without the prefix.
    """
    text = str(name)
    is_id = not Path(text).exists() and "/" in text and could_be_hub_id(text)
    return f"{MARK}{text}" if is_id else text


def local_copy(name: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """Returns a local path, after downloading the repository if the name is a Hub id.

    Args:
        name: Path of a file or folder, or a repository id with the prefix "hf://". The prefix keeps misspelled paths
            such as "runs/edit" from being looked up on the Hub.
        files: Patterns of the files to download.
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
    except Exception as error:  # the Hub client raises many exception types; each means that the download failed
        raise SourceNotFoundError(
            f"{repository!r} is no repository that can be reached on the Hub "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


class PushOptions(TypedDict, total=False):
    """Options for publishing on the Hub.

    Args:
        private: Whether a new repository is private; public by default.
        token: Token with write access; that of the login by default.
        licence: Licence of the upload, as the Hub names it, such as "apache-2.0"; the base model's by default.
        measures: Measured values by name, for the model card.
    """

    private: bool
    token: str | None
    licence: str | None
    measures: Mapping[str, Any] | None


def upload(folder: Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Uploads a folder to a repository on the Hub, and creates the repository if needed.

    Args:
        folder: The folder.
        repo_id: The repository, owner/name.
        private: Whether a new repository is private.
        token: Token with write access; that of the login by default.

    Returns:
        URL of the commit.

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
    except Exception as error:  # the Hub client raises many exception types; each means that the upload failed
        raise ConfigurationError(
            f"{repo_id} cannot be written on the Hub ({type(error).__name__}: {_first_line(error)}); log in with "
            "hf auth login, or give a token"
        ) from error
    return str(commit.commit_url)
