"""Refuses settings that are out of their range."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.errors import ConfigurationError


def at_least(least: float, where: str, **settings: float | None) -> None:
    """Refuses settings below a bound.

    Args:
        least: The smallest value.
        where: The configuration key that the settings belong to, such as "editor".
        settings: Name to value; None is not looked at.

    Raises:
        ConfigurationError: If one is smaller, or not a number.
    """
    for name, value in settings.items():
        if value is not None and not value >= least:
            raise ConfigurationError(f"{where}.{name}: expected at least {least}, found {value}")


def above(bound: float, where: str, **settings: float | None) -> None:
    """Refuses settings that are not above a bound; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is not larger.
    """
    for name, value in settings.items():
        if value is not None and not value > bound:
            raise ConfigurationError(f"{where}.{name}: expected more than {bound}, found {value}")


def one_of(choices: Sequence[str], where: str, **settings: str) -> None:
    """Refuses settings that are none of some words; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is another word.
    """
    for name, value in settings.items():
        if value not in choices:
            raise ConfigurationError(f"{where}.{name}: expected one of {tuple(choices)}, found {value!r}")
