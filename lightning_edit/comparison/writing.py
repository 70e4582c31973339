"""Writes a comparison's report: leaderboard.md, .csv and .png, report.json and report.html."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_edit.comparison.page import can_render, page
from lightning_edit.comparison.picture import can_draw, draw_leaderboard
from lightning_edit.comparison.report import Report, comma_separated, markdown, plain
from lightning_edit.files import replace_file, write_json

_LOG = logging.getLogger(__name__)


def write_report(report: Report, folder: str | Path, traces: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Writes a report in every format, the picture only if matplotlib is installed, and the page only with plotly.

    Args:
        report: The numbers.
        folder: Where to write.
        traces: Contents of traces.json files, to show in report.html.

    Returns:
        The files.
    """
    folder = Path(folder)
    texts = {"leaderboard.md": markdown(report), "leaderboard.csv": comma_separated(report)}
    if can_render():
        texts["report.html"] = page(report, traces)
    else:
        _LOG.warning("report.html was not written: it needs plotly (pip install 'lightning-edit[report]')")
    for name, text in texts.items():
        with replace_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(folder / "report.json", plain(report))
    pictures = [draw_leaderboard(report, folder / "leaderboard.png")] if can_draw() else []
    return [folder / name for name in (*texts, "report.json")] + pictures
