"""Cells of a comparison: test runs of one editor on one data set under one protocol, each in its own folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_edit.callbacks.report import METRICS_FILE, PREDICTIONS_FILE
from lightning_edit.comparison.settings import Comparison, Protocol
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import write_json

CELL_FILE = "cell.json"
FAILURE_FILE = "failure.txt"
SEQUENCE_FOLDER = "sequence"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Args:
        editor: Name of the editor.
        data: Name of the data set.
        protocol: Name of the protocol.
        folder: Folder of its run.
        identity: Digest of its settings and its editor's files, but not of data files or versions.
        reason: Why it is skipped; empty if it is run.
    """

    editor: str
    data: str
    protocol: str
    folder: Path
    identity: str
    reason: str = ""

    @property
    def name(self) -> str:
        """Human-readable name."""
        return f"{self.editor} on {self.data}, {self.protocol}"

    @property
    def is_done(self) -> bool:
        """Whether a run with the same settings is complete."""
        return (self.folder / METRICS_FILE).is_file() and self._stored().get("identity") == self.identity

    @property
    def ruled_out(self) -> str:
        """Why the editor cannot be used here, as a run with the same settings determined; empty otherwise."""
        stored = self._stored()
        return str(stored.get("not_applicable", "")) if stored.get("identity") == self.identity else ""

    @property
    def is_open(self) -> bool:
        """Whether the cell is to be run."""
        return not (self.is_done or self.reason or self.ruled_out)

    def rule_out(self, reason: str) -> None:
        """Records that the editor cannot be used here."""
        write_json(self.folder / CELL_FILE, {**self._stored(), "not_applicable": reason})

    def _stored(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / CELL_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def begin(self) -> None:
        """Deletes leftovers of failed runs or other settings from the folder, and writes the cell's description."""
        for name in (METRICS_FILE, PREDICTIONS_FILE, FAILURE_FILE):
            (self.folder / name).unlink(missing_ok=True)
        if self._stored().get("identity") != self.identity:
            shutil.rmtree(self.folder / SEQUENCE_FOLDER, ignore_errors=True)
        write_json(self.folder / CELL_FILE, {**asdict(self), "folder": self.folder.name})

    def end(self, seconds: float) -> None:
        """Records the seconds of the whole run, from which the grid's overhead is computed."""
        write_json(self.folder / CELL_FILE, {**self._stored(), "seconds": seconds})

    @property
    def overhead(self) -> tuple[float, float] | None:
        """Seconds of the whole run, and those not spent on editing, asking or judging; None if unknown."""
        try:
            costs = json.loads((self.folder / METRICS_FILE).read_text(encoding="utf-8"))["costs"]
            seconds = self._stored()["seconds"]
            return seconds, seconds - costs["seconds"]
        except (OSError, ValueError, KeyError, TypeError):
            return None


def cells_of(
    comparison: Comparison,
    shard: tuple[int, int] = (1, 1),
    editors: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
) -> list[Cell]:
    """Lists the cells of a grid, data set by data set.

    Args:
        comparison: The grid.
        shard: (i, n): every n-th cell, starting from the i-th, so that n processes share the work.
        editors: Only the cells of these editors; all if None.
        data: Only the cells of these data sets; all if None.

    Raises:
        ConfigurationError: If the grid has no such editor or data set.
    """
    for what, wanted, known in (("editors", editors, comparison.editors), ("data", data, comparison.data)):
        for name in wanted or ():
            if name not in known:
                raise ConfigurationError(f"{what}: the grid has no {name}; it has {', '.join(known)}")
    cells = [
        _cell(comparison, editor, data_set, protocol)
        for data_set in comparison.data
        for protocol, settings in comparison.protocols.items()
        for editor in settings.editors or comparison.editors
        if (editors is None or editor in editors) and (data is None or data_set in data)
    ]
    return cells[shard[0] - 1 :: shard[1]]


def _cell(comparison: Comparison, editor: str, data: str, protocol: str) -> Cell:
    entry = comparison.editors[editor]
    folder = Path(comparison.output) / "cells" / data / protocol / editor
    contents = _digests(entry.editor, entry.checkpoint, entry.experiment)
    parts = {
        "editor": {"content": contents},
        "data": comparison.data[data],
        "protocol": _identity_of(comparison.protocols[protocol]),
        "language_model": asdict(comparison.language_model),
        "corpus": comparison.corpus,
        "records": comparison.records if entry.records is None else entry.records,
        "seed": comparison.seed,
        "evaluation": asdict(comparison.evaluation),
    }
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return Cell(editor, data, protocol, folder, identity, entry.skip.get(data, ""))


def _identity_of(protocol: Protocol) -> dict[str, Any]:
    """Returns a protocol's settings, omitting unused newer ones so that the digests of earlier grids stay valid."""
    later = {"every", "text"}
    settings = {**asdict(protocol), "editors": None}
    return {name: value for name, value in settings.items() if name not in later or value}


def _digests(*paths: str | None) -> Sequence[str]:
    """Computes digests of an editor's files and of the files that they refer to."""
    files = [Path(path) for path in paths if path and Path(path).is_file()]
    return [hashlib.sha256(content).hexdigest() for file in files for content in with_references(file)]


def with_references(path: Path) -> list[bytes]:
    """Reads a file and, recursively, the YAML files that a YAML file names."""
    content = path.read_bytes()
    if path.suffix != ".yaml":
        return [content]
    names = sorted(set(re.findall(rb"[\w./-]+\.yaml", content)))
    files = [path.parent / name.decode() for name in names]
    return [content, *(part for file in files if file.is_file() for part in with_references(file))]
