"""The report as one HTML file that works offline: tables, plots and a browser of records."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from lightning_edit.comparison.figures import figures
from lightning_edit.comparison.report import Report, averaged_over
from lightning_edit.comparison.results import Run
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import finite_json

_TEMPLATE = "report.html"


def can_render() -> bool:
    """Whether plotly, whose script the page contains, is installed."""
    return importlib.util.find_spec("plotly") is not None


def page(report: Report, traces: Sequence[Mapping[str, Any]] = ()) -> str:
    """Renders the page. Texts of records are embedded as data, and never interpreted as HTML.

    Args:
        report: The numbers.
        traces: Contents of traces.json files to show.

    Raises:
        ConfigurationError: If plotly is not installed.
    """
    if not can_render():
        raise ConfigurationError("report.html needs the package plotly: pip install 'lightning-edit[report]'")
    from plotly.offline import get_plotlyjs

    template = resources.files("lightning_edit.comparison").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    content = finite_json({"table": _table(report), "plots": figures(report, traces), **_records(report.runs)})
    # "</script>" and "<!--" in a text would be read as HTML, so "<" is escaped.
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
    over = averaged_over(report)
    return {"columns": columns, "rows": rows, "resamples": report.resamples, "over": over}


def _records(runs: Sequence[Run]) -> dict[str, Any]:
    """Collects every probe once, and each editor's answers to it."""
    probes: dict[tuple[Any, ...], int] = {}
    shown: list[list[Any]] = []
    answers: list[dict[str, list[Any]]] = []
    for run in runs:
        run_answers: dict[str, list[Any]] = {}
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
            run_answers[str(probes[key])] = [_text(line["after"]), score]
        answers.append(run_answers)
    return {"probes": shown, "answers": answers}


def _text(side: Any) -> str:
    side = side or {}
    generated = side.get("generation")
    return str(side.get("teacher_forced", "") if generated is None else generated)
