"""Prints lines for people, and silences those that are of no use to them."""

from __future__ import annotations

import logging


def print_line(line: str) -> None:
    """Prints a line as it is: texts of users are no markup, and paths are not broken."""
    from rich.console import Console

    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def quiet_lightning() -> None:
    """Silences what Lightning says at the start of a run: accelerators that are not there, and advertisements."""
    import lightning.pytorch  # noqa: F401 - Lightning sets its level when it is imported

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
