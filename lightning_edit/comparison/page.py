"""The report as one HTML file that works offline: tables, plots and a browser of records."""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from lightning_edit.comparison.report import Report
from lightning_edit.comparison.results import Run
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import finite_json

_TEMPLATE = "report.html"


def page(report: Report) -> str:
    """The page. Texts of records are data to it, and are never read as HTML.

    Raises:
        ConfigurationError: If plotly is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise ConfigurationError("report.html needs the package plotly: pip install 'lightning-edit[report]'")
    from plotly.offline import get_plotlyjs

    template = resources.files("lightning_edit.comparison").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    content = finite_json({"table": _table(report), "plots": _plots(report), **_records(report.runs)})
    # "</script>" and "<!--" in a text would be read as HTML; JSON may spell the character by its number.
    embedded = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return template.replace("/*PLOTLY*/", get_plotlyjs()).replace("{}/*DATA*/", embedded)


def _table(report: Report) -> dict[str, Any]:
    rows = [
        {
            "names": [run.data, run.protocol, run.editor],
            "cells": [None if one is None else [one.mean, one.low, one.high] for one in row],
            "costs": run.summary.get("costs"),
            "problem": run.problem,
        }
        for run, row in zip(report.runs, report.intervals, strict=True)
    ]
    columns = [{"title": column.title, "better": column.better} for column in report.columns]
    return {"columns": columns, "rows": rows, "resamples": report.resamples}


def _plots(report: Report) -> list[dict[str, Any]]:
    """Plotly figures as plain data: bars with intervals, success against locality, and curves of sequences."""
    import plotly.graph_objects as graphs

    figures = []
    for data, protocol in dict.fromkeys((run.data, run.protocol) for run in report.runs if run.lines):
        plotted = [
            (run, row)
            for run, row in zip(report.runs, report.intervals, strict=True)
            if (run.data, run.protocol) == (data, protocol) and run.lines
        ]
        title = html.escape(f"{data}, {protocol}")
        figures += [_bars(graphs, report, plotted, title), _trade_off(graphs, report, plotted, title)]
    return [json.loads(figure.to_json()) for figure in figures if figure is not None]


def _bars(graphs: Any, report: Report, plotted: Sequence[Any], title: str) -> Any:
    names = [html.escape(run.editor) for run, _ in plotted]
    figure = graphs.Figure(layout={"title": {"text": title}, "barmode": "group", "legend": {"orientation": "h"}})
    for index, column in enumerate(report.columns):
        intervals = [row[index] for _, row in plotted]
        if any(one is None for one in intervals) or column.better != "higher":
            continue
        means = [one.mean for one in intervals]
        errors = {
            "array": [one.high - one.mean for one in intervals],
            "arrayminus": [one.mean - one.low for one in intervals],
        }
        shown = True if index < 4 else "legendonly"
        figure.add_bar(x=names, y=means, error_y={**errors, "thickness": 1}, name=column.title, visible=shown)
    return figure


def _trade_off(graphs: Any, report: Report, plotted: Sequence[Any], title: str) -> Any:
    titles = [column.title for column in report.columns]
    success = next((index for index, name in enumerate(titles) if name in ("edit success", "success")), None)
    locality = titles.index("locality") if "locality" in titles else None
    if success is None or locality is None:
        return None
    points = [(run, row[success], row[locality]) for run, row in plotted if row[success] and row[locality]]
    if len(points) < 2:
        return None
    figure = graphs.Figure(
        layout={
            "title": {"text": f"{title}: success against locality"},
            "xaxis": {"title": {"text": "locality (unchanged tokens)"}},
            "yaxis": {"title": {"text": titles[success]}},
            "showlegend": False,
        }
    )
    for run, wins, keeps in points:
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


def _records(runs: Sequence[Run]) -> dict[str, Any]:
    """Every probe once, and what each editor's model says to it."""
    probes: dict[tuple[Any, ...], int] = {}
    shown: list[list[Any]] = []
    answers: list[dict[str, list[Any]]] = []
    for run in runs:
        said: dict[str, list[Any]] = {}
        for line in run.lines:
            key = (run.data, line["record"], line["kind"], line["group"], line["prompt"])
            if key not in probes:
                probes[key] = len(probes)
                expected = [alias for aliases in line["expected"] for alias in aliases][:5]
                shown.append([*key, expected, _text(line["before"])])
            measures = line["measures"]
            is_kept = line["kind"] == "locality"
            names = ("generation_agreement", "self_agreement") if is_kept else ("containment", "token_accuracy")
            score = next((measures[name] for name in names if measures.get(name) is not None), None)
            said[str(probes[key])] = [_text(line["after"]), score]
        answers.append(said)
    return {"probes": shown, "answers": answers}


def _text(side: Any) -> str:
    side = side or {}
    generated = side.get("generation")
    return str(side.get("teacher_forced", "") if generated is None else generated)
