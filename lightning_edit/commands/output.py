"""What commands were given."""

from __future__ import annotations

from typing import Any


def given_options(**values: Any) -> dict[str, Any]:
    """The options that were given a value."""
    return {name: value for name, value in values.items() if value is not None}
