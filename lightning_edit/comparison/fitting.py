"""Prepares the editors of a comparison: loads trained ones, trains others, and collects statistics once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_edit.callbacks.last_checkpoint import LAST
from lightning_edit.comparison.cells import with_references
from lightning_edit.comparison.settings import Comparison, EditorEntry
from lightning_edit.data import EditDataModule
from lightning_edit.editors.base import Editor
from lightning_edit.editors.checkpoint import load_editor
from lightning_edit.editors.configured import configured_editor, configured_editor_of
from lightning_edit.editors.locate import LocateEditor
from lightning_edit.errors import ConfigurationError, RunInterruptedError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.statistics import MANIFEST, KeyStatistics
from lightning_edit.modules.locate import LocateEditing

_LOG = logging.getLogger(__name__)


class Editors:
    """The editors of a comparison, each prepared on first use.

    Args:
        comparison: The grid.
        model: The base model.
    """

    def __init__(self, comparison: Comparison, model: LanguageModel) -> None:
        self.comparison, self.model = comparison, model
        self._ready: dict[str, Editor] = {}

    def __getitem__(self, name: str) -> Editor:
        """Returns an editor that is ready to edit.

        Raises:
            LightningEditError: If it cannot be built, loaded or fitted.
        """
        if name not in self._ready:
            editor = self._prepare(name, self.comparison.editors[name])
            editor.share_searches(Path(self.comparison.output) / "values")
            self._ready[name] = editor
        return self._ready[name]

    def _prepare(self, name: str, entry: EditorEntry) -> Editor:
        if entry.checkpoint is not None:
            return load_editor(entry.checkpoint, self.model)
        if entry.experiment is not None:
            return load_editor(self._trained(name, entry.experiment), self.model)
        editor = configured_editor(str(entry.editor))
        if editor.capabilities.fit_reads == "corpus" and self.comparison.corpus is not None:
            return self._with_statistics(str(entry.editor))
        if editor.capabilities.fit_reads == "records":
            raise ConfigurationError(
                f"editors.{name}: {type(editor).__name__} has to be trained; give its checkpoint, or an experiment"
            )
        editor.setup(self.model)
        editor.fit_without_corpus(self.model)
        return editor

    def _trained(self, name: str, experiment: str) -> Path:
        """Returns the checkpoint of an experiment, after running or resuming it if it is not finished."""
        # Imported here: the command line imports the comparison.
        from lightning_edit.training_cli import run

        folder = Path(self.comparison.output) / "fit" / f"{name}-{_digest(with_references(Path(experiment)))}"
        folder.mkdir(parents=True, exist_ok=True)
        done, last = folder / "done", folder / LAST
        with FileLock(folder / ".lock"):
            if not done.exists():
                callbacks = [
                    {
                        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "init_args": {"dirpath": str(folder), "save_top_k": 0},
                    },
                    {"class_path": "lightning_edit.callbacks.LastCheckpoint"},
                ]
                resume = ["--ckpt_path", str(last)] if last.exists() else []
                given = ["--trainer.logger", "false", "--trainer.callbacks", json.dumps(callbacks)]
                given += ["--trainer.default_root_dir", str(folder)]
                run(["fit", "--config", experiment, *given, *resume])
                done.touch()
        return last

    def _with_statistics(self, path: str) -> Editor:
        """Builds an editor with statistics of its layers, collected once for all editors and processes."""
        corpus = json.dumps(self.comparison.corpus, sort_keys=True, default=str)
        folder = Path(self.comparison.output) / f"statistics-{_digest([corpus.encode()])}"
        editor = _locate_editor(path, folder)
        layers = editor.edited_layers(self.model)
        wanted = {self.model.layer_map.site(layer).name for layer in layers}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            known = KeyStatistics.load(folder).moments if (folder / MANIFEST).is_file() else {}
            if not wanted <= set(known):
                _LOG.info("collecting statistics of %s", ", ".join(sorted(wanted - set(known))))
                self._collect(editor, folder.parent)
        editor = _locate_editor(path, folder)
        editor.setup(self.model)
        return editor

    def _collect(self, editor: LocateEditor, folder: Path) -> None:
        module = LocateEditing(editor, self.comparison.language_model)
        module.attach(self.model)
        trainer = Trainer(
            accelerator="auto", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        with interrupts_raised(trainer):
            trainer.fit(module, EditDataModule(corpus=self.comparison.text()))


def _locate_editor(path: str, statistics: Path) -> LocateEditor:
    """Builds the editor of a file, with a folder of statistics.

    Raises:
        ConfigurationError: If the editor reads a corpus, but is not one of those whose statistics can be collected.
    """
    # mypy does not allow an abstract class as an argument that is a type.
    editor: LocateEditor = configured_editor_of(cast(Any, LocateEditor), path, statistics=str(statistics))
    return editor


@contextmanager
def interrupts_raised(trainer: Trainer) -> Iterator[None]:
    """Raises an error if a signal stops a Trainer's run.

    Raises:
        RunInterruptedError: With the status 143 after SIGTERM and 130 after SIGINT.
    """
    message = "stopped; run the same command again to resume"
    try:
        yield
    except SIGTERMException as error:
        raise RunInterruptedError(message, 143) from error
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        raise RunInterruptedError(message, 130) from error
    if trainer.received_sigterm:
        # It came in the last batch, after which the Trainer does not check.
        raise RunInterruptedError(message, 143)


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]
