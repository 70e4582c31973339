"""Logs cells to W&B: a grid is a group, and each cell a run with its headline measures and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_edit.callbacks.loggers import WandbDashboard
from lightning_edit.comparison.cells import Cell
from lightning_edit.comparison.columns import TEACHER_FORCED
from lightning_edit.comparison.results import Run, read_run
from lightning_edit.comparison.settings import Comparison

_TABLE: list[str | int] = ["record", "kind", "group", "prompt", "expected", "before", "after"]


@contextmanager
def tracked(cell: Cell, comparison: Comparison) -> Iterator[WandbDashboard | None]:
    """Yields the W&B logger of a cell's test run, in the group of the grid; None without W&B settings.

    When the block ends, the cell's headline measures and predictions are logged; a block that fails fails the W&B run.
    """
    settings = comparison.wandb
    if settings is None:
        yield None
        return
    logger = WandbDashboard(
        settings.project,
        name=cell.name,
        save_dir=comparison.output,
        group=settings.group or comparison.output,
        tags=[cell.editor, cell.data, cell.protocol],
    )
    try:
        yield logger
    except BaseException:
        logger.experiment.finish(exit_code=1)
        raise
    try:
        _log(logger, read_run(cell.folder), settings.predictions)
    finally:
        # An open run would also receive the logs of the next cell.
        logger.experiment.finish()


def headline(run: Run) -> dict[str, float]:
    """Computes the headline measures of a run: teacher-forced means over probes, and the cost of an edit."""
    measures = {}
    for column in TEACHER_FORCED:
        values = [value for group in column.groups(run) for record in group.values() for value in record]
        if values:
            measures[f"headline/{column.title.replace(' ', '_')}"] = sum(values) / len(values)
    seconds = (run.summary.get("costs") or {}).get("seconds_per_edit")
    return measures if seconds is None else {**measures, "headline/seconds_per_edit": float(seconds)}


def _log(logger: WandbDashboard, run: Run, rows: int) -> None:
    experiment: Any = logger.experiment
    experiment.config.update({"editor": run.editor, "data": run.data, "protocol": run.protocol})
    import wandb  # only here, because the import takes half a second

    table = wandb.Table(columns=_TABLE, data=[_row(line) for line in run.lines[:rows]])
    experiment.log({"predictions": table, **headline(run)})


def _row(line: Mapping[str, Any]) -> list[str]:
    """Returns a row of the table, with teacher-forced predictions where there is no generation."""
    answers = [line[state]["generation"] or line[state]["teacher_forced"] for state in ("before", "after")]
    expected = " / ".join(aliases[0] for aliases in line["expected"])
    return [line["record"], line["kind"], line["group"], line["prompt"], expected, *answers]
