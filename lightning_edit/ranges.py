"""Refuses settings that are out of range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_edit.errors import ConfigurationError


def at_least(least: float, where: str, **settings: float | None) -> None:
    """Refuses settings below a bound.

    Args:
        least: The smallest value.
        where: The configuration key that the settings belong to, such as "editor".
        settings: Values by name; None is skipped.

    Raises:
        ConfigurationError: If one is smaller, or not a number.
    """
    for name, value in _numbers(where, settings):
        if not value >= least:
            raise ConfigurationError(f"{where}.{name}: expected at least {least}, found {value}")


def at_most(most: float, where: str, **settings: float | None) -> None:
    """Refuses settings above a bound; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is larger.
    """
    for name, value in _numbers(where, settings):
        if not value <= most:
            raise ConfigurationError(f"{where}.{name}: expected at most {most}, found {value}")


def above(bound: float, where: str, **settings: float | None) -> None:
    """Refuses settings that are not above a bound; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is not larger.
    """
    for name, value in _numbers(where, settings):
        if not value > bound:
            raise ConfigurationError(f"{where}.{name}: expected more than {bound}, found {value}")


def layer_numbers(where: str, layers: Sequence[int] | None) -> None:
    """Refuses anything but a list of layer numbers, or None.

    Args:
        where: See :func:`at_least`; the setting is called "layers".
        layers: The setting.

    Raises:
        ConfigurationError: If it is something else, or names no layer.
    """
    if layers is None:
        return
    if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
        raise ConfigurationError(f"{where}.layers: expected a list of layers' numbers, found {layers!r}")
    if not layers:
        raise ConfigurationError(f"{where}.layers: name at least one layer, or none at all (null)")


def not_empty(where: str, **settings: Sequence[object] | None) -> None:
    """Refuses empty lists; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is empty.
    """
    for name, values in settings.items():
        if values is not None and not len(values):
            raise ConfigurationError(f"{where}.{name}: name at least one, or leave the setting out for its default")


def _numbers(where: str, settings: Mapping[str, float | None]) -> list[tuple[str, float]]:
    given = [(name, value) for name, value in settings.items() if value is not None]
    for name, value in given:
        if not isinstance(value, int | float):
            raise ConfigurationError(f"{where}.{name}: expected a number, found {value!r}")
    return given


def one_of(choices: Sequence[str], where: str, **settings: str) -> None:
    """Refuses settings that are not among the choices; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is not among them.
    """
    for name, value in settings.items():
        if value not in choices:
            raise ConfigurationError(f"{where}.{name}: expected one of {tuple(choices)}, found {value!r}")


def between(least: float, bound: float, where: str, **settings: float | None) -> None:
    """Refuses settings below ``least``, or not below ``bound``; see :func:`at_least`.

    Raises:
        ConfigurationError: If one is out of the range.
    """
    at_least(least, where, **settings)
    for name, value in _numbers(where, settings):
        if not value < bound:
            raise ConfigurationError(f"{where}.{name}: expected less than {bound}, found {value}")
