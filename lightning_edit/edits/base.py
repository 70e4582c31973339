"""What every kind of edit can do."""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lightning_edit.errors import EditError
from lightning_edit.files import replace_folder
from lightning_edit.models.fingerprint import Fingerprint
from lightning_edit.models.language_model import LanguageModel, Score
from lightning_edit.records import EditRequest

MANIFEST = "edit.json"
TENSORS = "edit.safetensors"
FORMAT = 1


class Scorer(Protocol):
    """What scores and generates: a language model, with or without an edit applied."""

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
    ) -> list[Score]:
        """See :meth:`LanguageModel.score`."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int] = 16, **settings: Any) -> list[str]:
        """See :meth:`LanguageModel.generate`."""


@dataclass(frozen=True)
class Provenance:
    """Where an edit comes from; it is stored with the edit.

    Args:
        method: Name of the editor.
        hyperparameters: The editor's settings.
        requests: What was asked for.
        base_name: Name of the base model.
        base_revision: Its revision.
        fingerprint: Its fingerprint.
        depends_on: Ids of the edits that were applied when this one was computed.
        id: Name of the edit.
        warnings: What a user of the edit should know.
        versions: Versions of the packages that made it.
    """

    method: str
    hyperparameters: dict[str, Any]
    requests: tuple[EditRequest, ...]
    base_name: str
    base_revision: str | None
    fingerprint: Fingerprint
    depends_on: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=lambda: package_versions())

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        method: str,
        hyperparameters: dict[str, Any],
        requests: Sequence[EditRequest],
        depends_on: Sequence[str] = (),
    ) -> Provenance:
        """The provenance of an edit made for ``model``."""
        return cls(
            method,
            hyperparameters,
            tuple(requests),
            model.name,
            model.revision,
            model.fingerprint,
            tuple(depends_on),
        )

    def on_top_of(self, ids: Sequence[str]) -> Provenance:
        """The same provenance of an edit that was computed with the edits ``ids`` applied."""
        return replace(self, depends_on=tuple(ids))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """The inverse of :meth:`to_dict`."""
        values = dict(values)
        values["requests"] = tuple(EditRequest(**request) for request in values["requests"])
        values["fingerprint"] = Fingerprint.from_dict(values["fingerprint"])
        values["depends_on"] = tuple(values["depends_on"])
        values["warnings"] = tuple(values["warnings"])
        return cls(**values)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what numbers come out."""
    return {name: version(name) for name in ("torch", "transformers", "lightning", "lightning-edit")}


class Edit(ABC):
    """What editing returns: a change that can be applied, taken back, saved and, for some kinds, merged.

    Args:
        provenance: Where it comes from.
    """

    kind: ClassVar[str]

    def __init__(self, provenance: Provenance) -> None:
        self.provenance = provenance

    @property
    def id(self) -> str:
        """Name of the edit."""
        return self.provenance.id

    @abstractmethod
    def applied(self, model: LanguageModel) -> AbstractContextManager[Scorer]:
        """A context that yields what scores and generates as the edited model.

        An edit of the weights also changes what ``model`` itself says within the context; an edit with an explicit
        memory stands in front of it, and answers only through what is yielded.

        The model's weights are never written, so that leaving the context restores it exactly.

        Raises:
            BaseModelMismatchError: If the edit was made for another base model.
        """

    def joined(self, other: Edit) -> Edit:
        """One edit in place of this one and a later one of its kind, for edits that stand in front of the model.

        Raises:
            EditError: If the two cannot be joined.
        """
        raise EditError(
            f"the edits {self.id} and {other.id} both stand in front of the model, and cannot be applied together"
        )

    @abstractmethod
    def merge(self, model: LanguageModel) -> None:
        """Writes the edit into the model's weights, for export.

        Raises:
            BaseModelMismatchError: If the edit was made for another base model.
            EditError: If this kind of edit cannot be written into weights.
        """

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the tensors into ``folder`` and returns what the manifest must say about them."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> Edit:
        """The inverse of :meth:`write`."""

    def save(self, folder: str | Path) -> Path:
        """Saves the edit as a folder of safetensors and a JSON manifest; the folder appears whole or not at all."""
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
            raise EditError(f"{folder} exists and is not an edit; save to a new folder")
        with replace_folder(folder) as temporary:
            details = self.write(temporary)
            manifest = {"format": FORMAT, "kind": self.kind, "details": details, **self.provenance.to_dict()}
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return folder
