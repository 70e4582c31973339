"""Time estimates for the cells of a grid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_edit.callbacks.report import METRICS_FILE
from lightning_edit.comparison.cells import Cell
from lightning_edit.comparison.settings import Comparison
from lightning_edit.records import EditRecord


@dataclass(frozen=True)
class Size:
    """Amount of work in a cell.

    Args:
        records: Records to edit.
        probes: Probes to ask of the edited model.
        edits: Edits to make, each of one or more records.
    """

    records: int
    probes: int
    edits: int

    @classmethod
    def of(cls, records: Sequence[EditRecord], requests_per_edit: int) -> Size:
        """Computes the size of a cell.

        Args:
            records: The records of the cell.
            requests_per_edit: Number of records that are edited jointly; 0 edits all of them at once.
        """
        edits = math.ceil(len(records) / (requests_per_edit or max(len(records), 1)))
        return cls(len(records), sum(len(record.all_probes) for record in records), edits)


class Estimate:
    """Estimates the seconds of cells from finished cells of the grid, or else from the figures in its YAML file.

    Args:
        comparison: The grid.
        cells: Its cells; the costs of finished ones are read.
    """

    def __init__(self, comparison: Comparison, cells: Sequence[Cell]) -> None:
        self._comparison = comparison
        self._seconds_per_edit: dict[tuple[str, str], list[float]] = {}
        self._seconds_per_probe: list[float] = []
        for cell in cells:
            if cell.is_done:
                self.learn(cell)

    def learn(self, cell: Cell) -> None:
        """Records the costs of a finished cell; a file that cannot be read is ignored, because this only estimates."""
        try:
            costs = json.loads((cell.folder / METRICS_FILE).read_text(encoding="utf-8")).get("costs") or {}
        except (OSError, ValueError, AttributeError):
            return
        if costs.get("seconds_per_edit") is not None:
            self._seconds_per_edit.setdefault((cell.editor, cell.protocol), []).append(costs["seconds_per_edit"])
        if costs.get("seconds_per_probe") is not None:
            judging = costs.get("seconds_of_judge_per_probe") or 0.0
            self._seconds_per_probe.append(costs["seconds_per_probe"] + judging)

    def seconds(self, cell: Cell, size: Size) -> float | None:
        """Estimates the seconds of a cell; None if the time of its editor is neither measured nor configured."""
        measured = self._seconds_per_edit.get((cell.editor, cell.protocol))
        per_record = self._comparison.editors[cell.editor].seconds_per_edit
        per_probe = self._comparison.seconds_per_probe
        if self._seconds_per_probe:
            per_probe = _mean(self._seconds_per_probe)
        if per_probe is None or (measured is None and per_record is None):
            return None
        editing = _mean(measured) * size.edits if measured else (per_record or 0.0) * size.records
        return editing + per_probe * size.probes

    def total(self, sizes: Mapping[Cell, Size]) -> str:
        """Formats the estimated total time of cells, naming the editors whose time is unknown."""
        seconds = {cell: self.seconds(cell, size) for cell, size in sizes.items()}
        known = [value for value in seconds.values() if value is not None]
        if not known:
            return "no time estimate yet"
        unknown = sorted({cell.editor for cell, value in seconds.items() if value is None})
        rest = f", and what {', '.join(unknown)} will take" if unknown else ""
        return f"about {duration(sum(known))}{rest}"


def duration(seconds: float) -> str:
    """Formats a number of seconds as seconds, minutes or hours, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
