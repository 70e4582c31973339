"""The leaderboard as a picture: one row per editor, one panel per headline measure, with intervals."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edit.comparison.bootstrap import Interval
from lightning_edit.comparison.report import Report
from lightning_edit.comparison.results import Run
from lightning_edit.files import replace_file

_PANELS = 5
"""Number of panels in a row, for the first columns of a report."""
_Row = Sequence[Interval | None]


def can_draw() -> bool:
    """Whether matplotlib, from the extra "plot", is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_leaderboard(report: Report, path: str | Path) -> Path:
    """Draws means and 95 % intervals of a report's first columns, with a row of panels per data set and protocol.

    Editors are sorted by their mean over the panels whose measures are better when higher. Failed and skipped runs are
    not drawn.

    Args:
        report: The report.
        path: Image file to write, such as leaderboard.png.
    """
    from matplotlib.figure import Figure

    grids = _grids(report)
    columns = report.columns[:_PANELS]
    height = sum(0.22 * len(rows) + 0.9 for rows in grids.values())
    figure = Figure(figsize=(2.3 * len(columns) + 1.2, max(height, 1.5)), layout="constrained")
    shape = [max(len(rows), 1) + 3 for rows in grids.values()]
    axes = figure.subplots(len(grids) or 1, len(columns), squeeze=False, sharey="row", height_ratios=shape or None)
    for row_of_axes, ((data, protocol), rows) in zip(axes, grids.items(), strict=False):
        ordered = sorted(rows, key=lambda pair: _mean_score(report, pair[1]))
        for panel, (axis, column) in enumerate(zip(row_of_axes, columns, strict=True)):
            for height_of_row, (_, intervals) in enumerate(ordered):
                _dot(axis, height_of_row, intervals[panel])
            axis.set_title(column.title if panel else f"{data}, {protocol}\n{column.title}", fontsize=8, loc="left")
            axis.set_yticks(range(len(ordered)), [run.editor for run, _ in ordered], fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
            axis.grid(axis="x", linewidth=0.4, alpha=0.6)
            if column.scale == 1.0 and column.better == "higher":
                axis.set_xlim(-0.03, 1.03)
    with replace_file(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return Path(path)


def _grids(report: Report) -> dict[tuple[str, str], list[tuple[Run, _Row]]]:
    """Groups the runs that have numbers by data set and protocol."""
    grids: dict[tuple[str, str], list[tuple[Run, _Row]]] = {}
    for run, intervals in zip(report.runs, report.intervals, strict=True):
        if not run.problem:
            grids.setdefault((run.data, run.protocol), []).append((run, intervals))
    return grids


def _mean_score(report: Report, intervals: _Row) -> float:
    columns = zip(report.columns[:_PANELS], intervals, strict=False)
    means = [interval.mean for column, interval in columns if interval is not None and column.better == "higher"]
    return sum(means) / len(means) if means else 0.0


def _dot(axis: Any, height: int, interval: Interval | None) -> None:
    if interval is None:
        return
    axis.plot([interval.low, interval.high], [height, height], color="#9bb7d4", linewidth=3, solid_capstyle="round")
    axis.plot(interval.mean, height, "o", color="#1f4e79", markersize=4)
