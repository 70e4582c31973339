"""How long the cells of a grid will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_edit.comparison.cells import Cell
from lightning_edit.comparison.results import Run, read_run
from lightning_edit.comparison.settings import Comparison
from lightning_edit.records import EditRecord


@dataclass(frozen=True)
class Size:
    """What a cell has to do.

    Args:
        edits: Edits to make.
        probes: Probes to ask of the edited model.
    """

    edits: int
    probes: int

    @classmethod
    def of(cls, records: Sequence[EditRecord]) -> Size:
        """The size of a cell with these records."""
        return cls(len(records), sum(len(record.all_probes) for record in records))


class Estimate:
    """Seconds of cells, from what the done cells of a grid took, or else from the figures in its YAML file.

    Args:
        comparison: The grid.
        cells: Its cells; those that are done are read.
    """

    def __init__(self, comparison: Comparison, cells: Sequence[Cell]) -> None:
        self._comparison = comparison
        self._seconds_per_edit: dict[str, list[float]] = {}
        self._seconds_per_probe: list[float] = []
        for cell in cells:
            if cell.is_done:
                self.learn(read_run(cell.folder))

    def learn(self, run: Run) -> None:
        """Takes in what a cell took."""
        costs: Mapping[str, float | None] = run.summary.get("costs") or {}
        per_edit, per_probe = costs.get("seconds_per_edit"), costs.get("seconds_per_probe")
        if per_edit is not None:
            self._seconds_per_edit.setdefault(run.editor, []).append(per_edit)
        if per_probe is not None:
            self._seconds_per_probe.append(per_probe)

    def seconds(self, cell: Cell, size: Size) -> float | None:
        """What a cell will take; None where neither a cell nor the file says how long its editor's edits take."""
        measured = self._seconds_per_edit.get(cell.editor)
        per_edit = _mean(measured) if measured else self._comparison.editors[cell.editor].seconds_per_edit
        per_probe = self._comparison.seconds_per_probe
        if self._seconds_per_probe:
            per_probe = _mean(self._seconds_per_probe)
        if per_edit is None or per_probe is None:
            return None
        return per_edit * size.edits + per_probe * size.probes

    def total(self, sizes: Mapping[Cell, Size]) -> str:
        """What cells will take together, in words."""
        seconds = {cell: self.seconds(cell, size) for cell, size in sizes.items()}
        known = [value for value in seconds.values() if value is not None]
        if not known:
            return "how long they take is not known yet"
        unknown = sorted({cell.editor for cell, value in seconds.items() if value is None})
        rest = f", and what {', '.join(unknown)} will take" if unknown else ""
        return f"about {duration(sum(known))}{rest}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
