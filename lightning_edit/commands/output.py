"""What commands show, and what they were given."""

from __future__ import annotations

from typing import Any


def print_line(line: str) -> None:
    """Prints a line as it is: texts of users are no markup, and paths are not broken."""
    from rich.console import Console

    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def given_options(**values: Any) -> dict[str, Any]:
    """The options that were given a value."""
    return {name: value for name, value in values.items() if value is not None}
