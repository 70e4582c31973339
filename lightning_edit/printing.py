"""Prints plain lines, and silences Lightning's notices."""

from __future__ import annotations

import logging


def print_line(line: str) -> None:
    """Prints a line verbatim, without Rich markup or wrapped paths."""
    from rich.console import Console

    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def quiet_lightning() -> None:
    """Silences Lightning's notices at the start of a run: unavailable accelerators, and advertisements."""
    import lightning.pytorch  # noqa: F401 - Lightning sets its level when it is imported

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
