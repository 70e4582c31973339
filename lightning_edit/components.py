"""Parts that are described by their class and their constructor's arguments, and built again from that."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lightning_edit.errors import ConfigurationError

T = TypeVar("T")


def init_arguments(part: object) -> dict[str, Any]:
    """The constructor's arguments, read from the attributes of the same names."""
    return {name: getattr(part, name) for name in argument_names(type(part))}


def argument_names(kind: type) -> list[str]:
    """Names of a constructor's arguments, those of its base class among them where it passes arguments on."""
    names: dict[str, None] = {}
    for own in kind.__mro__:
        if "__init__" not in vars(own):
            continue
        parameters = list(inspect.signature(vars(own)["__init__"]).parameters.values())[1:]
        names.update({one.name: None for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD})
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return list(names)


def describe(part: object) -> dict[str, Any]:
    """A part as plain data: class_path and init_args."""
    kind = type(part)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": init_arguments(part)}


def build(description: dict[str, Any], base: Callable[..., T], where: str) -> T:
    """The inverse of :func:`describe`.

    Args:
        description: What :func:`describe` gave.
        base: What class of part is expected (an abstract one, too); nothing else is built.
        where: Where the description stands, for messages.

    Raises:
        ConfigurationError: If the description names something else, or an argument that it does not take.
    """
    module, _, name = str(description["class_path"]).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{where}: there is no class {description['class_path']} ({error})") from error
    expected = cast(type[T], base)
    if not (isinstance(kind, type) and issubclass(kind, expected)):
        raise ConfigurationError(f"{where}: {description['class_path']} is no {expected.__name__}")
    names = argument_names(kind)
    for unknown in set(description["init_args"]) - set(names):
        close = difflib.get_close_matches(str(unknown), names, 1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
        raise ConfigurationError(f"{where}: {kind.__name__} has no setting {unknown}; {hint}")
    return kind(**description["init_args"])
