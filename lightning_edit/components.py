"""Converts components to their class path and constructor arguments, and builds them again."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, TypeVar, cast, get_type_hints

from torch import nn

from lightning_edit.errors import ConfigurationError

T = TypeVar("T")
ALLOWED = "LIGHTNING_EDIT_ALLOW"
"""Environment variable with the modules, separated by commas, whose classes files may name."""
_PACKAGE = "lightning_edit"


def import_allowed() -> None:
    """Imports the modules that the environment allows, which registers the edit classes they define.

    Installed modules take precedence over modules of the current folder.

    Raises:
        ConfigurationError: If one cannot be imported.
    """
    modules = [name for name in os.environ.get(ALLOWED, "").split(",") if name]
    if modules and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigurationError(
                f"allow: the module {name} cannot be imported ({error}); it is looked for among the installed ones and "
                "in the current folder"
            ) from error


def init_arguments(part: object) -> dict[str, Any]:
    """Reads the constructor's arguments from attributes of the same names; dataclasses become dictionaries."""
    values = {name: _argument(part, name) for name in argument_names(type(part))}
    # mypy does not know that a dataclass value is an instance here.
    return {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}  # type: ignore[arg-type]


def _argument(part: object, name: str) -> Any:
    try:
        return getattr(part, name)
    except AttributeError as error:
        # Not an AttributeError: inside a property, torch.nn.Module would report the property as missing.
        raise ConfigurationError(
            f"{type(part).__name__} does not keep its argument {name} in an attribute of that name, as components do"
        ) from error


def argument_names(kind: type) -> list[str]:
    """Lists a constructor's arguments, including those of its base class if it passes ``**kwargs`` on."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names.update({one.name: None for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD})
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return list(names)


def describe(part: object) -> dict[str, Any]:
    """Converts a component, and the modules among its arguments, to plain data: class_path and init_args."""
    kind = type(part)
    arguments = {
        name: describe(value) if isinstance(value, nn.Module) else value for name, value in init_arguments(part).items()
    }
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def build(description: dict[str, Any], base: Callable[..., T], where: str) -> T:
    """Builds a component from its description; the inverse of :func:`describe`.

    Args:
        description: Result of :func:`describe`.
        base: Expected base class, which may be abstract; other classes are refused.
        where: Location of the description, for messages.

    Raises:
        ConfigurationError: If the description names another class, or an unknown argument.
    """
    kind = class_of(str(description.get("class_path")), where)
    expected = cast(type[T], base)
    if not (isinstance(kind, type) and issubclass(kind, expected)):
        raise ConfigurationError(f"{where}: {description['class_path']} is not a subclass of {expected.__name__}")
    names, settings = argument_names(kind), description.get("init_args") or {}
    for unknown in set(settings) - set(names):
        close = difflib.get_close_matches(str(unknown), names, 1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
        raise ConfigurationError(f"{where}: {kind.__name__} has no setting {unknown}; {hint}")
    arguments = {name: _build_argument(value, kind, name, where) for name, value in settings.items()}
    return kind(**arguments)


def rebuild(part: T, **settings: Any) -> T:
    """Copies a component with some constructor arguments replaced.

    Args:
        part: The other part.
        settings: Arguments of the constructor to replace.

    Raises:
        ConfigurationError: If it does not take one of them.
    """
    names = argument_names(type(part))
    if unknown := sorted(set(settings) - set(names)):
        raise ConfigurationError(f"{type(part).__name__} has no setting {unknown[0]}; it has {', '.join(names)}")
    return type(part)(**{name: getattr(part, name) for name in names} | settings)


def class_of(class_path: str, where: str) -> object:
    """Resolves a class path to a class of this package, of an imported module, or of an allowed one.

    Args:
        class_path: The class's name, with its module.
        where: Location of the name, for messages.

    Returns:
        The class; None if the module has no such name.

    Raises:
        ConfigurationError: If the module cannot be imported, or is neither imported nor allowed.
    """
    module, _, name = class_path.rpartition(".")
    allowed = [package for package in os.environ.get(ALLOWED, "").split(",") if package]
    known = module in sys.modules or any(f"{module}.".startswith(f"{package}.") for package in (_PACKAGE, *allowed))
    if not known:
        raise ConfigurationError(
            f"{where}: {class_path} is not a class of this package, and files may not import other modules unless they "
            f"are allowed; if you trust it, add --allow {module}, set {ALLOWED}={module} in the environment, or import "
            "it first"
        )
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{where}: there is no class {class_path} ({error})") from error


def _build_argument(value: Any, kind: type, name: str, where: str) -> Any:
    """Builds the nested components and settings dataclasses of an argument."""
    if _is_description(value):
        return build(value, nn.Module, where)
    if isinstance(value, dict):
        settings = next((hints[name] for base in kind.__mro__ if name in (hints := _hints(base))), None)
        if isinstance(settings, type) and is_dataclass(settings):
            known = {field.name for field in fields(settings)}
            if unknown := sorted(set(value) - known):
                raise ConfigurationError(
                    f"{where}: {name} has no setting {unknown[0]}; it has {', '.join(sorted(known))}"
                )
            default = _default(kind, name)
            # Missing settings keep the constructor's default, as on the command line.
            return replace(default, **value) if isinstance(default, settings) else settings(**value)
    return value


def _default(kind: type, name: str) -> object:
    """Returns the default of a constructor's argument, or None."""
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameter = inspect.signature(vars(base)["__init__"]).parameters.get(name)
            if parameter is not None:
                return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(vars(kind)["__init__"]) if "__init__" in vars(kind) else {}


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"class_path", "init_args"}
