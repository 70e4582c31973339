"""Options of commands."""

from __future__ import annotations

from typing import Any


def given_options(**values: Any) -> dict[str, Any]:
    """Returns the options that are not None."""
    return {name: value for name, value in values.items() if value is not None}
