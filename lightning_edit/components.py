"""Parts that are described by their class and their constructor's arguments, and built again from that."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lightning_edit.errors import ConfigurationError

T = TypeVar("T")


def init_arguments(part: object) -> dict[str, Any]:
    """The constructor's arguments, read from the attributes of the same names.

    A constructor that passes ``**arguments`` on has those of its base class, too.
    """
    names: dict[str, None] = {}
    for kind in type(part).__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
        names.update({own.name: None for own in parameters if own.kind is not inspect.Parameter.VAR_KEYWORD})
        if not any(own.kind is inspect.Parameter.VAR_KEYWORD for own in parameters):
            break
    return {name: getattr(part, name) for name in names}


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
        ConfigurationError: If the description names something else.
    """
    module, _, name = str(description["class_path"]).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{where}: there is no class {description['class_path']} ({error})") from error
    expected = cast(type[T], base)
    if not (isinstance(kind, type) and issubclass(kind, expected)):
        raise ConfigurationError(f"{where}: {description['class_path']} is no {expected.__name__}")
    return kind(**description["init_args"])
