"""Where an edit comes from: its base model, its editor and the requests."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

from lightning_edit.models.fingerprint import Fingerprint
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.records import EditRequest


@cache
def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that affect results."""
    return {name: version(name) for name in ("torch", "transformers", "lightning", "lightning-edit")}


@dataclass(frozen=True)
class BaseModel:
    """The base model that an edit was made for, and how it was loaded.

    Args:
        name: Hub id, path or bundled name.
        revision: Hub revision, if any.
        fingerprint: Identity of its weights.
        dtype: Precision of its hidden states, such as "float32".
        chat_template: Whether prompts were rendered with the tokenizer's chat template.
        site: Name pattern of the edit site, for models whose structure is ambiguous.
        separator: Text between prompt and target.
    """

    name: str
    revision: str | None
    fingerprint: Fingerprint
    dtype: str = "float32"
    chat_template: bool = False
    site: str | None = None
    separator: str = " "

    @classmethod
    def of(cls, model: LanguageModel) -> BaseModel:
        """Describes a loaded model."""
        return cls(
            model.name,
            model.revision,
            model.fingerprint,
            str(model.dtype).removeprefix("torch."),
            model.encoder.chat_template,
            model.layer_map.site_pattern,
            model.encoder.separator,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BaseModel:
        """Builds the description from ``dataclasses.asdict``."""
        return cls(**{**values, "fingerprint": Fingerprint.from_dict(values["fingerprint"])})


@dataclass(frozen=True)
class Provenance:
    """Where an edit comes from; it is stored with the edit.

    Args:
        method: Name of the editor.
        settings: The editor's constructor arguments.
        requests: The requests that were edited.
        base: The base model.
        findings: Data that the editor derived before or while editing, such as sampled contexts, as plain data.
        depends_on: Ids of the edits that this one was computed on top of, without those that they depend on
            themselves.
        failed: Reasons why requests could not be edited, one message each.
        failed_requests: These requests, in the same order.
        overruled: Requests that were left out because a later one of the same edit contradicts them.
        warnings: Further notes for users of the edit.
        id: Name of the edit.
        versions: Versions of the packages that made it.
    """

    method: str
    settings: dict[str, Any]
    requests: tuple[EditRequest, ...]
    base: BaseModel
    findings: dict[str, Any] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    failed_requests: tuple[EditRequest, ...] = ()
    overruled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    versions: dict[str, str] = field(default_factory=lambda: dict(package_versions()))

    @classmethod
    def of(
        cls, model: LanguageModel, method: str, settings: dict[str, Any], requests: Sequence[EditRequest]
    ) -> Provenance:
        """Creates the provenance of an edit made for ``model``."""
        return cls(method, settings, tuple(requests), BaseModel.of(model))

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything a user should know about the edit, as messages."""
        failed = (f"left out: {problem}" for problem in self.failed)
        overruled = (f"overruled by a later request: {name}" for name in self.overruled)
        return (*self.warnings, *overruled, *failed)

    def to_dict(self) -> dict[str, Any]:
        """Converts to plain data for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Provenance:
        """The inverse of :meth:`to_dict`."""
        values = dict(values)
        for name in ("requests", "failed_requests"):
            values[name] = tuple(EditRequest(**request) for request in values.get(name, ()))
        values["base"] = BaseModel.from_dict(values["base"])
        for name in ("depends_on", "failed", "overruled", "warnings"):
            values[name] = tuple(values[name])
        return cls(**values)
