"""Reads the results of test runs: the measures of every probe, record by record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_edit.callbacks.report import METRICS_FILE, PREDICTIONS_FILE
from lightning_edit.comparison.cells import CELL_FILE, FAILURE_FILE, SEQUENCE_FOLDER
from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.modules.sequential import SCHEDULE_FILE, read_schedule

Group = tuple[str, str]
"""Kind and group of probes."""


@dataclass(frozen=True)
class Run:
    """A test run, or a cell that has none.

    Args:
        editor: Name of the editor.
        data: Name of the data set.
        protocol: Name of the protocol.
        folder: Its folder.
        summary: metrics.json; empty if there is no run.
        lines: predictions.jsonl.
        problem: Why there is no run; empty if there is one.
        sequence: sequence.jsonl, the measures along a sequence of edits; empty for other protocols.
    """

    editor: str
    data: str
    protocol: str
    folder: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()
    problem: str = ""
    sequence: Sequence[Mapping[str, Any]] = ()

    def values(self, kinds: Iterable[str], measure: str, group: str | None = None) -> dict[str, list[float]]:
        """Returns the values of a measure by record; values that were not finite are infinite.

        Args:
            kinds: Kinds of probes.
            measure: Name of the measure.
            group: Group of probes; all by default.
        """
        wanted = set(kinds)
        values: dict[str, list[float]] = {}
        for line in self.lines:
            if line["kind"] in wanted and group in (None, line["group"]) and measure in line["measures"]:
                value = line["measures"][measure]
                values.setdefault(line["record"], []).append(math.inf if value is None else float(value))
        return values

    def groups(self, kind: str) -> list[str]:
        """Returns the groups of a kind of probes, in order of appearance."""
        return list(dict.fromkeys(line["group"] for line in self.lines if line["kind"] == kind))


def read_run(folder: str | Path) -> Run:
    """Reads a test run, or a cell of a comparison.

    Raises:
        SourceNotFoundError: If the folder holds neither.
        ConfigurationError: If one of its files is damaged.
    """
    folder = Path(folder)
    names = _json(folder / CELL_FILE) if (folder / CELL_FILE).is_file() else {}
    if not (folder / METRICS_FILE).is_file():
        if not names and not (folder / FAILURE_FILE).is_file():
            raise SourceNotFoundError(f"{folder}: no test run here ({METRICS_FILE} is missing)")
        return Run(*_names(folder, names, {}), folder, problem=_problem(folder, names))
    summary = _json(folder / METRICS_FILE)
    lines, sequence = _lines(folder / PREDICTIONS_FILE), _sequence(folder)
    return Run(*_names(folder, names, summary), folder, summary, lines, sequence=sequence)


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Reads the test runs in folders and their subfolders.

    Raises:
        SourceNotFoundError: If a folder has none.
    """
    runs = []
    for path in map(Path, paths):
        folders = {file.parent for name in (METRICS_FILE, CELL_FILE) for file in path.rglob(name)}
        if not folders:
            raise SourceNotFoundError(f"{path}: no test run here; pass folders with {METRICS_FILE}")
        runs += [read_run(folder) for folder in sorted(folders)]
    return runs


def read_traces(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Reads traces.json from folders that ``trace`` wrote.

    Raises:
        SourceNotFoundError: If a folder has none.
        ConfigurationError: If one is damaged.
    """
    traces = []
    for folder in map(Path, paths):
        files = sorted(folder.glob("traces*.json"))
        if not files:
            raise SourceNotFoundError(f"{folder}: no traces.json here; pass a folder that lightning-edit trace wrote")
        traces += [_json(file) for file in files]
    return traces


def _names(folder: Path, names: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns a run's editor, data set and protocol, as named by the comparison or else by the run itself."""
    editor = names.get("editor") or summary.get("settings", {}).get("editor", {}).get("name") or folder.name
    data = names.get("data") or str(summary.get("data") or folder.parent.name).partition(":")[0].rpartition("/")[2]
    return str(editor), str(data), str(names.get("protocol") or summary.get("protocol") or "")


def _problem(folder: Path, names: Mapping[str, Any]) -> str:
    failure = folder / FAILURE_FILE
    if failure.is_file():
        return "failed: " + failure.read_text(encoding="utf-8").strip().splitlines()[-1]
    if names.get("not_applicable"):
        return f"not applicable: {names['not_applicable']}"
    return f"skipped: {names['reason']}" if names.get("reason") else "not run"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: damaged ({error}); run the test again") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: damaged; run the test again")
    return content


def _sequence(folder: Path) -> list[dict[str, Any]]:
    """Reads the measures along a sequence, which a cell keeps in a subfolder."""
    path = next((one for one in (folder / SEQUENCE_FOLDER, folder) if (one / SCHEDULE_FILE).is_file()), None)
    return [] if path is None else read_schedule(path / SCHEDULE_FILE)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing; run the test again")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not text:
            continue
        try:
            line = json.loads(text)
            lines.append({name: line[name] for name in ("record", "kind", "group", "prompt", "expected", "measures")})
            lines[-1] |= {name: line.get(name) for name in ("before", "after")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{path}, line {number}: damaged ({error!r}); run the test again") from error
    return lines
