"""Cached answers of the unedited model, in memory and optionally on disk."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightning_edit.edits.provenance import BaseModel, package_versions
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.modules.questions import QuestionKey, Reply
from lightning_edit.records import Answer

_REPLIES = "replies"
"""Metadata key of the replies in a file."""


class UneditedAnswers(dict[QuestionKey, Reply]):
    """Answers of the unedited model by question, shared by evaluators of the same model.

    Args:
        folder: Folder for sharing answers with other processes; in memory only if not given. Each :meth:`add` writes
            one file there, and files of other processes are read once.
        model: The model; its weights, precision, encoding and the package versions determine the subfolder.
    """

    def __init__(self, folder: str | Path | None = None, model: LanguageModel | None = None) -> None:
        super().__init__()
        self._folder = Path(folder) / _identity(model) if folder is not None and model is not None else None
        self._read: set[Path] = set()

    def add(self, replies: Mapping[QuestionKey, Reply]) -> None:
        """Adds answers, and writes them into the folder."""
        self.update(replies)
        if self._folder is None or not replies:
            return
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        tensors = {
            str(number): reply.head_input.contiguous()
            for number, reply in enumerate(replies.values())
            if reply.head_input is not None
        }
        described = [[key, asdict(reply.answer), reply.target_ids] for key, reply in replies.items()]
        with replace_file(path) as temporary:
            save_file(tensors, temporary, {_REPLIES: json.dumps(described, ensure_ascii=False)})
        self._read.add(path)

    def refresh(self) -> None:
        """Reads the answers that other processes have written since the last call.

        Raises:
            ConfigurationError: If a file does not hold such answers.
        """
        if self._folder is None or not self._folder.is_dir():
            return
        for path in sorted(set(self._folder.glob("*.safetensors")) - self._read):
            self.update(_read(path))
            self._read.add(path)


def _read(path: Path) -> dict[QuestionKey, Reply]:
    """Reads the answers of a file.

    Raises:
        ConfigurationError: If :meth:`UneditedAnswers.add` did not write it.
    """
    replies: dict[QuestionKey, Reply] = {}
    try:
        with safe_open(path, "pt") as file:
            tensors = set(file.keys())
            for number, (key, answer, target_ids) in enumerate(json.loads(file.metadata()[_REPLIES])):
                head_input = file.get_tensor(str(number)) if str(number) in tensors else None
                replies[_key(key)] = Reply(_answer(answer), tuple(target_ids), head_input)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a file of the unedited model's answers ({error}); delete it") from error
    return replies


def _identity(model: LanguageModel) -> str:
    """Computes a digest of what answers depend on, other than the question."""
    base = BaseModel.of(model)
    parts = {**asdict(base), "name": None, "revision": None, "versions": package_versions()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _key(values: list[Any]) -> QuestionKey:
    prompt, texts, limit, compares = values
    return prompt, tuple(texts), limit, compares


def _answer(values: dict[str, Any]) -> Answer:
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Answer(**arguments)
