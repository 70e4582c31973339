"""The numbers of a comparison, and their formats as text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from lightning_edit.comparison.bootstrap import Interval, paired_difference
from lightning_edit.comparison.columns import PRESETS, Column
from lightning_edit.comparison.results import Run
from lightning_edit.errors import ConfigurationError

T = TypeVar("T")
_LARGE = 10
"""Numbers from here on are shown with one decimal."""
_COSTS = {
    "s / edit": ("seconds_per_edit", 1.0),
    "s / probe": ("seconds_per_probe", 1.0),
    "edit, KB": ("edit_bytes", 1e-3),
    "peak memory, GB": ("peak_memory_bytes", 1e-9),
}
"""Name and factor of each column's entry in a run's costs."""


@dataclass(frozen=True)
class Report:
    """The numbers of a comparison.

    Args:
        runs: The runs.
        columns: The columns.
        intervals: For each run, a value per column; None if nothing was measured.
        reference: Name of the editor that others are compared with.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        per_record: Whether each record counts equally, instead of each probe.
    """

    runs: Sequence[Run]
    columns: Sequence[Column]
    intervals: Sequence[Sequence[Interval | None]]
    reference: str
    resamples: int
    seed: int
    per_record: bool
    _computed: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False, compare=False)

    def differences(self, run: Run) -> list[Interval | None]:
        """Computes each column's paired difference to the reference on the same data set and protocol, once."""
        return self._once("differences", run, self._compute_differences)

    def groups(self, run: Run) -> dict[str, dict[str, Interval]]:
        """Computes each column's value for each named group of probes, once; by title and group."""
        return self._once("groups", run, self._compute_groups)

    def _once(self, what: str, run: Run, compute: Callable[[Run], T]) -> T:
        key = what, id(run)
        if key not in self._computed:
            self._computed[key] = compute(run)
        value: T = self._computed[key]
        return value

    def _compute_differences(self, run: Run) -> list[Interval | None]:
        other = next(
            (
                one
                for one in self.runs
                if (one.editor, one.data, one.protocol) == (self.reference, run.data, run.protocol) and one.lines
            ),
            None,
        )
        if other is None or other is run or not run.lines:
            return [None] * len(self.columns)
        return [self._difference(run, other, column) for column in self.columns]

    def _compute_groups(self, run: Run) -> dict[str, dict[str, Interval]]:
        values: dict[str, dict[str, Interval]] = {}
        for column in self.columns:
            names = {group for kind in column.kinds for group in run.groups(kind)} - {""}
            for group in sorted(names):
                interval = column.group_interval(run, group, self.resamples, self.seed, self.per_record)
                if interval is not None:
                    values.setdefault(column.title, {})[group] = interval
        return values

    def _difference(self, run: Run, other: Run, column: Column) -> Interval | None:
        pair = column.groups(run), column.groups(other)
        difference = paired_difference(*pair, self.resamples, self.seed, self.per_record)
        if difference is None:
            return None
        mean, low, high = (column.scale * value for value in (difference.mean, difference.low, difference.high))
        return replace(difference, mean=mean, low=low, high=high)


def build_report(
    runs: Sequence[Run],
    preset: str = "default",
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    per_record: bool = False,
) -> Report:
    """Computes the numbers of runs.

    Args:
        runs: The runs.
        preset: Name of a set of columns, see :data:`PRESETS`.
        reference: Editor that others are compared with; the first one by default.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        per_record: Average over records, with each record's probes averaged first, instead of over probes.

    Raises:
        ConfigurationError: If there is no such preset or editor.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"preset: there is no {preset!r}; there are {', '.join(PRESETS)}")
    editors = list(dict.fromkeys(run.editor for run in runs))
    if reference is not None and reference not in editors:
        raise ConfigurationError(f"reference: there is no editor {reference!r}; there are {', '.join(editors)}")
    columns = PRESETS[preset]
    intervals = [[column.interval(run, resamples, seed, per_record) for column in columns] for run in runs]
    kept = [index for index in range(len(columns)) if any(row[index] is not None for row in intervals)]
    return Report(
        runs,
        [columns[index] for index in kept],
        [[row[index] for index in kept] for row in intervals],
        reference or editors[0],
        resamples,
        seed,
        per_record,
    )


def plain(report: Report) -> dict[str, Any]:
    """Converts a report to plain data."""
    titles = [column.title for column in report.columns]
    rows = [
        {
            "editor": run.editor,
            "data": run.data,
            "protocol": run.protocol,
            "problem": run.problem,
            "measures": _named(titles, intervals),
            f"minus {report.reference}": _named(titles, report.differences(run)),
            "groups": {
                title: {group: asdict(one) for group, one in groups.items()}
                for title, groups in report.groups(run).items()
            },
            "costs": run.summary.get("costs"),
            "left_out": len(run.summary.get("left_out") or ()),
            "counts": run.summary.get("counts"),
        }
        for run, intervals in zip(report.runs, report.intervals, strict=True)
    ]
    average = "record" if report.per_record else "probe"
    return {"average": average, "resamples": report.resamples, "reference": report.reference, "runs": rows}


def _named(titles: Sequence[str], intervals: Sequence[Interval | None]) -> dict[str, Any]:
    return {title: asdict(one) for title, one in zip(titles, intervals, strict=True) if one is not None}


def averaged_over(report: Report) -> str:
    """Returns what means are over, for notes."""
    over = "records" if report.per_record else "probes"
    by_group = any(column.by_group for column in report.columns)
    return f"{over}, or over the means of groups" if by_group else over


def markdown(report: Report) -> str:
    """Formats Markdown tables per data set and protocol, with 95 % intervals over records.

    There is a table of all columns, one of portability and locality by group, and one of paired differences to the
    reference.
    """
    parts = []
    for data, protocol in dict.fromkeys((run.data, run.protocol) for run in report.runs):
        rows = [
            (run, row)
            for run, row in zip(report.runs, report.intervals, strict=True)
            if (run.data, run.protocol) == (data, protocol)
        ]
        parts.append("\n".join([f"## {data}, {protocol}", "", *_main_table(report, rows)]))
        done = [run for run, _ in rows if not run.problem]
        groups = _table(done, [_by_group(report, run) for run in done])
        if groups:
            parts.append("\n".join(["By group:", "", *groups]))
        titles = [column.title for column in report.columns]
        others = [run for run in done if run.editor != report.reference]
        differences = _table(others, [dict(zip(titles, report.differences(run), strict=True)) for run in others])
        if differences:
            parts.append("\n".join([f"Minus {report.reference}, on the same records:", "", *differences]))
    average = averaged_over(report)
    note = f"Means over {average} with 95 % bootstrap intervals over records ({report.resamples} samples)."
    return "\n\n".join([*parts, note]) + "\n"


def _main_table(report: Report, rows: Sequence[tuple[Run, Sequence[Interval | None]]]) -> list[str]:
    used = [index for index in range(len(report.columns)) if any(row[index] is not None for _, row in rows)]
    titles = ["editor", *(report.columns[index].title for index in used), *_COSTS, "records"]
    lines = [_row(titles), _row(["---"] * len(titles))]
    for run, row in rows:
        if run.problem:
            lines.append(_row([run.editor, run.problem, *[""] * (len(titles) - 2)]))
            continue
        cells = [_text(row[index]) for index in used]
        lines.append(_row([run.editor, *cells, *_costs(run), str(run.summary["counts"]["records"])]))
    return lines


def _by_group(report: Report, run: Run) -> dict[str, Interval | None]:
    """Returns a run's portability and locality by group, under teacher forcing, by heading."""
    forced = ((("portability",), "token_accuracy"), (("locality",), "self_agreement"))
    titles = [column.title for column in report.columns if (column.kinds, column.measure) in forced]
    groups = report.groups(run)
    return {f"{title}: {group}": one for title in titles for group, one in groups.get(title, {}).items()}


def _table(runs: Sequence[Run], values: Sequence[Mapping[str, Interval | None]]) -> list[str]:
    """Formats a table with a row per run and a column per name that has a value; empty if there is none."""
    used = [
        name
        for name in dict.fromkeys(name for row in values for name in row)
        if any(row.get(name) is not None for row in values)
    ]
    if not used:
        return []
    rows = [_row([run.editor, *(_text(row.get(name)) for name in used)]) for run, row in zip(runs, values, strict=True)]
    return [_row(["editor", *used]), _row(["---"] * (len(used) + 1)), *rows]


def comma_separated(report: Report) -> str:
    """Formats a CSV with one line per run; an interval takes three columns.

    After the columns come portability and locality by group, and the paired differences to the reference.
    """
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    titles = [column.title for column in report.columns]
    minus = [f"{title} minus {report.reference}" for title in titles]
    rows: list[dict[str, Interval | None]] = [
        dict(zip(titles, intervals, strict=True))
        | _by_group(report, run)
        | dict(zip(minus, report.differences(run), strict=True))
        for run, intervals in zip(report.runs, report.intervals, strict=True)
    ]
    groups = dict.fromkeys(name for row in rows for name in row if name not in titles and name not in minus)
    names = [*titles, *groups, *minus]
    bounds = [f"{name}{end}" for name in names for end in ("", " low", " high")]
    writer.writerow(["editor", "data", "protocol", "records", *bounds, *_COSTS, "problem"])
    for run, row in zip(report.runs, rows, strict=True):
        numbers = [value for name in names for value in _bounds(row.get(name))]
        records = run.summary.get("counts", {}).get("records", "")
        writer.writerow([run.editor, run.data, run.protocol, records, *numbers, *_costs(run), run.problem])
    return output.getvalue()


def _bounds(interval: Interval | None) -> tuple[float | str, float | str, float | str]:
    return ("", "", "") if interval is None else (interval.mean, interval.low, interval.high)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _text(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    if not math.isfinite(interval.mean):
        return "not finite"
    digits = 1 if max(abs(interval.low), abs(interval.high)) >= _LARGE else 2
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _costs(run: Run) -> list[str]:
    costs = run.summary.get("costs") or {}
    values = [(costs.get(name), factor) for name, factor in _COSTS.values()]
    return ["" if value is None else f"{value * factor:.3g}" for value, factor in values]
