"""The plots of report.html, as plain data of plotly figures."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_edit.comparison.bootstrap import Interval
from lightning_edit.comparison.report import Report
from lightning_edit.comparison.results import Run
from lightning_edit.tracing.picture import TITLES

_SHOWN_BARS = 4
"""Number of columns whose bars are visible initially; a click on the legend shows the others."""
_CURVES = (("edit success", "edit_success", "token_accuracy"), ("locality", "locality", "self_agreement"))
"""Title, probe kind and measure of the curves of a sequence."""
_TRACED_FACTS = 5
"""Number of facts of a trace that are plotted."""
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
_MAP_HEIGHT = 220
"""Pixels of a heat map."""
Figure = dict[str, Any]
_Row = tuple[Run, Sequence[Interval | None]]


def figures(report: Report, traces: Sequence[Mapping[str, Any]] = ()) -> list[Figure]:
    """Draws bars with intervals, success against locality, curves of sequences, and causal traces.

    Titles are plain text; names within a figure are escaped, since plotly reads them as HTML.

    Args:
        report: The numbers.
        traces: Contents of traces.json files.
    """
    plots: list[Any] = []
    for data, protocol in dict.fromkeys((run.data, run.protocol) for run in report.runs if run.lines):
        rows = [
            (run, row)
            for run, row in zip(report.runs, report.intervals, strict=True)
            if (run.data, run.protocol) == (data, protocol) and run.lines
        ]
        title = f"{data}, {protocol}"
        plots += [_bars(report, rows, title), _trade_off(report, rows, title)]
        plots += _sequence_curves([run for run, _ in rows], title)
    for trace in traces:
        plots += _trace_maps(trace)
    return [json.loads(plot.to_json()) for plot in plots if plot is not None]


def _graphs() -> Any:
    import plotly.graph_objects

    return plotly.graph_objects


def _bars(report: Report, rows: Sequence[_Row], title: str) -> Any:
    names = [html.escape(run.editor) for run, _ in rows]
    figure = _graphs().Figure(layout={"title": {"text": title}, "barmode": "group", "legend": _LEGEND})
    for index, column in enumerate(report.columns):
        intervals = [interval for _, row in rows if (interval := row[index]) is not None]
        if len(intervals) < len(rows) or column.better != "higher":
            continue
        errors = {
            "array": [one.high - one.mean for one in intervals],
            "arrayminus": [one.mean - one.low for one in intervals],
        }
        figure.add_bar(
            x=names,
            y=[one.mean for one in intervals],
            error_y={**errors, "thickness": 1},
            name=column.title,
            visible=True if index < _SHOWN_BARS else "legendonly",
        )
    return figure


def _trade_off(report: Report, rows: Sequence[_Row], title: str) -> Any:
    titles = [column.title for column in report.columns]
    success = next((index for index, name in enumerate(titles) if name in ("edit success", "success")), None)
    locality = titles.index("locality") if "locality" in titles else None
    if success is None or locality is None:
        return None
    points = [(run, row[success], row[locality]) for run, row in rows]
    complete = [(run, wins, keeps) for run, wins, keeps in points if wins and keeps]
    if len(complete) < 2:
        return None
    figure = _graphs().Figure(
        layout={
            "title": {"text": f"{title}: success against locality"},
            "xaxis": {"title": {"text": "locality (unchanged tokens)"}},
            "yaxis": {"title": {"text": titles[success]}},
            "showlegend": False,
        }
    )
    for run, wins, keeps in complete:
        figure.add_scatter(
            x=[keeps.mean],
            y=[wins.mean],
            mode="markers+text",
            text=[html.escape(run.editor)],
            textposition="top center",
            error_x={"array": [keeps.high - keeps.mean], "arrayminus": [keeps.mean - keeps.low], "thickness": 1},
            error_y={"array": [wins.high - wins.mean], "arrayminus": [wins.mean - wins.low], "thickness": 1},
        )
    return figure


def _sequence_curves(runs: Sequence[Run], title: str) -> Iterator[Any]:
    """Plots measures over all records edited so far, and relative perplexity, against the number of edits."""
    sequences = [run for run in runs if len(run.sequence) > 1]
    for name, kind, measure in _CURVES:
        figure = _lines(f"{title}: {name} over all records edited so far", name)
        for run in sequences:
            points = [(row["edits"], _mean_of(row["all"], kind, measure)) for row in run.sequence]
            _add_line(figure, run.editor, points)
        yield figure if figure.data else None
    figure = _lines(f"{title}: perplexity", "times the unedited model's")
    for run in sequences:
        points = [
            (row["edits"], row["perplexity"] / row["perplexity_before"])
            for row in run.sequence
            if row.get("perplexity") is not None and row.get("perplexity_before")
        ]
        _add_line(figure, run.editor, points)
    yield figure if figure.data else None


def _lines(title: str, y: str) -> Any:
    return _graphs().Figure(
        layout={
            "title": {"text": title},
            "xaxis": {"title": {"text": "edits"}},
            "yaxis": {"title": {"text": html.escape(y)}},
            "legend": _LEGEND,
        }
    )


def _add_line(figure: Any, editor: str, points: Sequence[tuple[int, float | None]]) -> None:
    known = [(edits, value) for edits, value in points if value is not None]
    if known:
        x, y = zip(*known, strict=True)
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=html.escape(editor))


def _mean_of(measures: Mapping[str, Any], kind: str, measure: str) -> float | None:
    """Averages a measure over the groups of a kind; None if a value is not finite, or nothing was measured."""
    names = [name for name in measures if name.split("/")[0] == kind and name.rpartition("/")[2] == measure]
    values = [measures[name] for name in names]
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    return float(sum(values) / len(values))


def _trace_maps(trace: Mapping[str, Any]) -> Iterator[Any]:
    """Plots a heat map (tokens by layers) of each kind of restored state, for each fact."""
    from plotly.subplots import make_subplots

    for fact in trace["facts"][:_TRACED_FACTS]:
        kinds = list(fact["restored"])
        titles = [TITLES.get(kind, html.escape(kind)) for kind in kinds]
        figure = make_subplots(len(kinds), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.08)
        tokens = [html.escape(f"{number} {token.strip()}"[:24]) for number, token in enumerate(fact["tokens"])]
        for number, kind in enumerate(kinds, 1):
            effects = [[value - fact["corrupted"] for value in row] for row in fact["restored"][kind]]
            figure.add_heatmap(z=effects, y=tokens, coloraxis="coloraxis", row=number, col=1)
        figure.update_xaxes(title_text="layer", row=len(kinds), col=1)
        figure.update_yaxes(autorange="reversed", automargin=True)
        severed = (trace.get("settings") or {}).get("severed")
        cut = f" ({TITLES.get(severed, severed)} severed)" if severed else ""
        model = f", {trace['model']}" if trace.get("model") else ""
        figure.update_layout(
            title={"text": f"Causal trace{cut}{model}: {fact['prompt']} →{fact['answer']}"},
            height=_MAP_HEIGHT * len(kinds),
            coloraxis={"colorscale": "Viridis", "colorbar": {"title": {"text": "effect on p"}}},
        )
        yield figure
