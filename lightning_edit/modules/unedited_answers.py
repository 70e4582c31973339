"""Cached answers of the unedited model, in memory and optionally on disk."""

from __future__ import annotations

import hashlib
import json
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_edit.edits.provenance import BaseModel, package_versions
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.modules.questions import QuestionKey, Reply
from lightning_edit.records import Answer

_FORMAT = 1
"""Increased when the content of the files, or what decides the answers, changes."""
_REPLIES = "replies"
"""Name of the tensor (N) uint8 with the replies as JSON."""


class UneditedAnswers(dict[QuestionKey, Reply]):
    """What the unedited model says to each question; shared by evaluators of the same model."""

    def __init__(self) -> None:
        super().__init__()
        self._folder: Path | None = None
        self._known_files: set[Path] = set()

    @classmethod
    def kept_in(cls, folder: str | Path, model: LanguageModel) -> UneditedAnswers:
        """Creates answers that other processes find in a folder, and that are read from there.

        Args:
            folder: The folder. Each :meth:`add` writes one file into a subfolder, named by the model's weights,
                precision, device, texts and package versions.
            model: The model.
        """
        answers = cls()
        answers._folder = Path(folder) / _identity(model)
        return answers

    def add(self, replies: Mapping[QuestionKey, Reply]) -> None:
        """Adds answers, and writes them into the folder; a folder that cannot be written is left with a warning."""
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
        content = json.dumps(described, ensure_ascii=False).encode()
        tensors[_REPLIES] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        try:
            with replace_file(path) as temporary:
                save_file(tensors, temporary)
        except OSError as error:
            warnings.warn(f"{self._folder}: the unedited model's answers are not kept ({error})", stacklevel=2)
            self._folder = None
            return
        self._known_files.add(path)

    def refresh(self) -> None:
        """Reads what other processes have written into the folder since the last time; known answers stay.

        Raises:
            ConfigurationError: If a file there is none of theirs.
        """
        if self._folder is None or not self._folder.is_dir():
            return
        for path in sorted(set(self._folder.glob("*.safetensors")) - self._known_files):
            for key, reply in _read(path).items():
                self.setdefault(key, reply)
            self._known_files.add(path)


def _read(path: Path) -> dict[QuestionKey, Reply]:
    """Reads the answers of a file.

    Raises:
        ConfigurationError: If it was not written by :meth:`UneditedAnswers.add`.
    """
    replies: dict[QuestionKey, Reply] = {}
    try:
        tensors = load_file(path)
        described = json.loads(bytes(tensors.pop(_REPLIES).tolist()))
        for number, (key, answer, target_ids) in enumerate(described):
            replies[_key(key)] = Reply(_answer(answer), tuple(target_ids), tensors.get(str(number)))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a file of the unedited model's answers ({error}); delete it") from error
    return replies


def _identity(model: LanguageModel) -> str:
    """Digest of what answers depend on, other than the question."""
    parts = {
        **asdict(BaseModel.of(model)),
        "name": None,
        "revision": None,
        "versions": package_versions(),
        "format": _FORMAT,
        "device": model.device.type,
        "attention": getattr(model.model.config, "_attn_implementation", None),
        "end tokens": getattr(model.model.generation_config, "eos_token_id", None),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _key(values: list[Any]) -> QuestionKey:
    prompt, texts, limit, compares = values
    return prompt, tuple(texts), limit, compares


def _answer(values: dict[str, Any]) -> Answer:
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Answer(**arguments)
