"""Publishes edits, editors and statistics on the Hugging Face Hub, with cards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from lightning_edit.editors.base import Editor
from lightning_edit.editors.checkpoint import save_editor
from lightning_edit.edits.base import Edit
from lightning_edit.edits.provenance import BaseModel
from lightning_edit.errors import ConfigurationError
from lightning_edit.export.adapter import write_text
from lightning_edit.export.card import DescribedBase, card, edited_facts
from lightning_edit.hub import PushOptions, upload
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.statistics import KeyStatistics

CHECKPOINT = "editor.ckpt"
"""Name of an editor's file in its repository."""


def push_edit(edit: Edit, repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Uploads an edit; :func:`lightning_edit.edits.load_edit` reads it as hf://owner/name.

    Args:
        edit: The edit.
        repo_id: The repository, owner/name; it is created if there is none.
        options: See :class:`lightning_edit.hub.PushOptions`.

    Returns:
        URL of the commit.

    Raises:
        ConfigurationError: If the Hub refuses, or cannot be reached.
    """
    usage = f'```python\nfrom lightning_edit import load_edit\n\nedit = load_edit("hf://{repo_id}")\n```'
    with tempfile.TemporaryDirectory() as work:
        folder = edit.save(Path(work) / "edit")
        title, lines = "Edit of a language model", edited_facts([edit])
        return _publish(folder, repo_id, title, edit.provenance.base, lines, usage, options)


def push_editor(editor: Editor, model: LanguageModel, repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Uploads a trained editor; ``from_pretrained`` of its class reads it. See :func:`push_edit`.

    Args:
        editor: The editor, set up on ``model``.
        model: The base model.
        repo_id: The repository, owner/name.
        options: See :class:`lightning_edit.hub.PushOptions`.
    """
    name = type(editor).__name__
    lines = ["Settings:", "", *(f"- {key}: {value!r}" for key, value in editor.hyperparameters.items()), ""]
    usage = (
        f"```python\nfrom lightning_edit import {name}, load_language_model\n\n"
        f'model = load_language_model("{model.name}")\neditor = {name}.from_pretrained("{repo_id}", model)\n```'
    )
    with tempfile.TemporaryDirectory() as work:
        save_editor(editor, model, Path(work) / CHECKPOINT)
        title, base = f"{name}, an editor of a language model", BaseModel.of(model)
        return _publish(Path(work), repo_id, title, base, lines, usage, options)


def push_statistics(statistics: KeyStatistics, repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Uploads key statistics; editors read them as hf://owner/name. See :func:`push_edit`."""
    sites = [f"- {site}: {len(moment)} × {len(moment)}" for site, moment in sorted(statistics.moments.items())]
    lines = [f"Second moments of keys, on {statistics.corpus}.", "", *sites, ""]
    usage = f"```yaml\neditor:\n  init_args: {{statistics: hf://{repo_id}}}\n```"
    with tempfile.TemporaryDirectory() as work:
        folder = statistics.save(Path(work) / "statistics")
        base = _Base(statistics.model_name, str(statistics.fingerprint))
        return _publish(folder, repo_id, "Statistics of a language model's keys", base, lines, usage, options)


def _publish(
    folder: Path,
    repo_id: str,
    title: str,
    base: DescribedBase,
    lines: Sequence[str],
    usage: str,
    options: PushOptions,
) -> str:
    text = card(title, base, options.get("licence"), lines, usage, options.get("measures"))
    write_text(folder / "README.md", text)
    return upload(folder, repo_id, options.get("private", False), options.get("token"))


class _Base:
    """A base model as described in a card."""

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name, self.fingerprint = name, fingerprint


def read_measures(path: str | Path) -> dict[str, float]:
    """Reads the measures from a test run's metrics.json.

    Raises:
        ConfigurationError: If the file has none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))["metrics"]
        return {str(name): float(value) for name, value in content.items() if value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"metrics: {path}: not the metrics.json of a test run ({error!r})") from error
