"""Pictures of causal traces, in the layout of the paper's figures 1 and 2."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edit.errors import ConfigurationError
from lightning_edit.files import replace_file
from lightning_edit.tracing.causal import Trace, average_effects

TITLES = {"state": "single states", "mlp": "MLP outputs", "attention": "attention outputs"}
COLORS = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}


def _pyplot() -> Any:
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("pictures need the package matplotlib: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _escaped(text: str) -> str:
    """Escapes a text so that matplotlib finds no formula."""
    return text.replace("$", r"\$")


def draw_trace(trace: Trace, path: str | Path, window: int, severed: str | None = None) -> Path:
    """Draws a heat map for each kind: tokens as rows, layers as columns."""
    pyplot = _pyplot()
    kinds = list(trace.restored)
    height = 1.2 + 0.28 * len(trace.tokens)
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.6 * len(kinds), height), squeeze=False)
    names = [
        _escaped(f"{token!r}"[1:-1]) + ("*" if trace.subject[0] <= place < trace.subject[1] else "")
        for place, token in enumerate(trace.tokens)
    ]
    for axis, kind in zip(axes[0], kinds, strict=True):
        values = trace.restored[kind].numpy()
        image = axis.imshow(values, aspect="auto", cmap=COLORS[kind], vmin=min(trace.corrupted, values.min()))
        axis.set_yticks(range(len(names)), names, fontsize=8)
        wide = "" if kind == "state" else f", window of {window}"
        axis.set_title(f"{TITLES[kind]} put back{wide}", fontsize=9)
        axis.set_xlabel("layer (centre of the window)" if wide else "layer", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        bar = figure.colorbar(image, ax=axis)
        bar.ax.set_title(f"p({_escaped(trace.answer.strip())})", fontsize=8)
    cut = f", {TITLES[severed]} severed" if severed else ""
    figure.suptitle(f"clean {trace.clean:.3f}, subject* corrupted {trace.corrupted:.3f}{cut}", fontsize=9)
    figure.tight_layout()
    return _saved(figure, path)


def draw_averages(traces: Sequence[Trace], path: str | Path, severed: str | None = None) -> Path:
    """Draws a panel for each kind: mean indirect effect by layer, one line per token role, with 95 % bands."""
    pyplot = _pyplot()
    kinds = list(traces[0].restored)
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.6 * len(kinds), 3.6), squeeze=False, sharey=True)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for role, (mean, band) in average_effects(traces, kind).items():
            layers = range(len(mean))
            axis.plot(layers, mean.numpy(), label=role)
            axis.fill_between(layers, (mean - band).numpy(), (mean + band).numpy(), alpha=0.2)
        cut = f", {TITLES[severed]} severed" if severed else ""
        axis.set_title(f"{TITLES[kind]}{cut}, {len(traces)} facts", fontsize=9)
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel("mean indirect effect on p(answer)")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    return _saved(figure, path)


def _saved(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    _pyplot().close(figure)
    return path
