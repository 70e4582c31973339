"""Edits, editors and statistics as repositories on the Hugging Face Hub, with cards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_edit.editors.base import Editor
from lightning_edit.editors.checkpoint import save_editor
from lightning_edit.edits.base import Edit
from lightning_edit.errors import ConfigurationError
from lightning_edit.export.adapter import write_text
from lightning_edit.export.card import card, edited_facts
from lightning_edit.hub import upload
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.statistics import KeyStatistics

CHECKPOINT = "editor.ckpt"
"""Name of an editor's file in its repository."""


def push_edit(
    edit: Edit,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    measures: Mapping[str, Any] | None = None,
) -> str:
    """Uploads an edit; :func:`lightning_edit.edits.load_edit` reads it by the repository's id.

    Args:
        edit: The edit.
        repo_id: The repository, owner/name; it is created if there is none.
        private: Whether a new repository is private.
        token: A token with the right to write; the one of the login if none is given.
        licence: Licence of the upload, as the Hub names it, such as "apache-2.0".
        measures: Name to value of what was measured, for the card.

    Returns:
        Address of the commit.

    Raises:
        ConfigurationError: If the Hub refuses, or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as work:
        folder = edit.save(Path(work) / "edit")
        usage = f'```python\nfrom lightning_edit import load_edit\n\nedit = load_edit("hf://{repo_id}")\n```'
        text = card("Edit of a language model", edit.provenance.base, licence, edited_facts([edit]), usage, measures)
        write_text(folder / "README.md", text)
        return upload(folder, repo_id, private, token)


def push_editor(
    editor: Editor,
    model: LanguageModel,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    measures: Mapping[str, Any] | None = None,
) -> str:
    """Uploads a trained editor; ``from_pretrained`` of its class reads it. See :func:`push_edit`.

    Args:
        editor: The editor, set up on ``model``.
        model: The base model.
        repo_id: See :func:`push_edit`, as for the other arguments.
        private: See there.
        token: See there.
        licence: See there.
        measures: See there.
    """
    from lightning_edit.edits.provenance import BaseModel

    name = type(editor).__name__
    with tempfile.TemporaryDirectory() as work:
        save_editor(editor, model, Path(work) / CHECKPOINT)
        lines = ["Settings:", "", *(f"- {key}: {value!r}" for key, value in editor.hyperparameters.items()), ""]
        usage = (
            f"```python\nfrom lightning_edit import {name}, load_language_model\n\n"
            f'model = load_language_model("{model.name}")\neditor = {name}.from_pretrained("{repo_id}", model)\n```'
        )
        text = card(f"{name}, an editor of a language model", BaseModel.of(model), licence, lines, usage, measures)
        write_text(Path(work) / "README.md", text)
        return upload(Path(work), repo_id, private, token)


def push_statistics(
    statistics: KeyStatistics,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
) -> str:
    """Uploads statistics of keys; editors read them by the repository's id. See :func:`push_edit`."""
    with tempfile.TemporaryDirectory() as work:
        folder = statistics.save(Path(work) / "statistics")
        sites = [f"- {site}: {len(moment)} × {len(moment)}" for site, moment in sorted(statistics.moments.items())]
        lines = [f"Second moments of keys, on {statistics.corpus}.", "", *sites, ""]
        usage = f"```yaml\neditor:\n  init_args: {{statistics: hf://{repo_id}}}\n```"
        base = _Base(statistics.model_name, str(statistics.fingerprint))
        text = card("Statistics of a language model's keys", base, licence, lines, usage)
        write_text(folder / "README.md", text)
        return upload(folder, repo_id, private, token)


class _Base:
    """What a card says of a base model."""

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name, self.fingerprint = name, fingerprint


def read_measures(path: str | Path) -> dict[str, float]:
    """The measures of a test run's metrics.json.

    Raises:
        ConfigurationError: If the file has none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))["metrics"]
        return {str(name): float(value) for name, value in content.items() if value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"metrics: {path}: not the metrics.json of a test run ({error!r})") from error
