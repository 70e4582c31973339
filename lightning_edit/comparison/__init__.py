"""Grids of editors × data sets × protocols, and their reports."""

from lightning_edit.comparison.cells import Cell, cells_of
from lightning_edit.comparison.columns import PRESETS, Column
from lightning_edit.comparison.grid import Grid
from lightning_edit.comparison.picture import draw_leaderboard
from lightning_edit.comparison.report import Report, build_report
from lightning_edit.comparison.results import Run, read_run, read_runs, read_traces
from lightning_edit.comparison.settings import Comparison, EditorEntry, Protocol, read_comparison
from lightning_edit.comparison.writing import write_report

__all__ = [
    "PRESETS",
    "Cell",
    "Column",
    "Comparison",
    "EditorEntry",
    "Grid",
    "Protocol",
    "Report",
    "Run",
    "build_report",
    "cells_of",
    "draw_leaderboard",
    "read_comparison",
    "read_run",
    "read_runs",
    "read_traces",
    "write_report",
]
