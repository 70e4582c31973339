"""Learning curves from the metrics.csv of runs."""

from __future__ import annotations

import csv
import fnmatch
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_edit.errors import ConfigurationError, SourceNotFoundError

DEFAULT_MEASURES = (
    "train/loss",
    "val/edit_success/token_accuracy",
    "val/generalization/token_accuracy",
    "val/locality*/self_agreement",
)
"""Measures drawn by default, if a run has them; "*" matches any text."""
_COLUMNS = 3
Curve = tuple[list[int], list[float]]


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Reads the finite values of a run by name, as logged steps and values.

    Args:
        run: Folder with metrics.csv, or with exactly one below it.

    Raises:
        SourceNotFoundError: If there is no metrics.csv, or several.
        ConfigurationError: If it cannot be read.
    """
    folder = Path(run)
    files = [folder / "metrics.csv"] if (folder / "metrics.csv").is_file() else sorted(folder.rglob("metrics.csv"))
    if len(files) != 1:
        problem = f"{len(files)} runs, such as {files[0].parent} and {files[1].parent}" if files else "no metrics.csv"
        raise SourceNotFoundError(f"{folder}: {problem}; name the folder of one run")
    curves: dict[str, Curve] = {}
    try:
        with files[0].open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = int(float(row["step"]))
                for name, text in row.items():
                    if name not in ("step", "epoch") and text and math.isfinite(float(text)):
                        steps, values = curves.setdefault(name, ([], []))
                        steps.append(step)
                        values.append(float(text))
    except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{files[0]}: not the metrics of a run ({error!r})") from error
    return curves


def draw_curves(runs: Mapping[str, Mapping[str, Curve]], measures: Sequence[str], path: str | Path) -> Path:
    """Draws learning curves, one plot per measure and one line per run.

    Args:
        runs: Curves by name of the run.
        measures: Names of the measures; "*" matches any text.
        path: The file to write, such as curves.png.

    Raises:
        ConfigurationError: If matplotlib is not installed, or no run has one of the measures.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError("plots need the package matplotlib: pip install 'lightning-edit[plot]'") from error
    known = sorted({name for curves in runs.values() for name in curves})
    drawn = list(dict.fromkeys(name for wanted in measures for name in fnmatch.filter(known, wanted)))
    if not drawn:
        raise ConfigurationError(f"measures: none of {list(measures)} was logged; there are {', '.join(known)}")
    columns = min(len(drawn), _COLUMNS)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows), layout="constrained")
    for place, name in enumerate(drawn, 1):
        axes = figure.add_subplot(rows, columns, place)
        for run, curves in runs.items():
            if name in curves:
                axes.plot(*curves[name], label=run, marker="." if len(curves[name][0]) < 20 else None)
        values = [value for curves in runs.values() for value in curves.get(name, ([], []))[1]]
        if name.startswith("val/") and all(0 <= value <= 1 for value in values):
            # Values in [0, 1]: the full range keeps small changes small.
            axes.set_ylim(-0.02, 1.02)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 4))
    figure.savefig(path, dpi=120)
    return Path(path)
