"""Argument parsers with concise errors: the key, the nearest valid name and the file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser

from lightning_edit.errors import ConfigurationError, LightningEditError

SETTINGS = "settings"
"""Option for a file with a command's options."""
_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (--[^\s=]+)")
_UNEXPECTED = re.compile(r"(?:Key|Group) ['\"]([^'\"]+)['\"] (?:is not expected|does not accept)")
_NO_CLASS = re.compile(r"(?:Expected a dot import path string:|Import path) ([^\s;,]+)")
_NOISE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value|^Problem with given"
)


class ConciseArgumentParser(ArgumentParser):
    """A jsonargparse parser that raises errors instead of printing every option and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises a concise error.

        Raises:
            ConfigurationError: Always.
        """
        if not self.exit_on_error:
            # jsonargparse is trying one of several alternatives.
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [name for action in parser._actions for name in action.option_strings]
        raise ConfigurationError(concise(message, options)) from ex


def command_parser(function: Callable[..., object], name: str) -> ArgumentParser:
    """Builds the parser of a command: one option per parameter, explained by the docstring.

    Options can also be given in a file (--settings).

    Args:
        function: The command.
        name: Name of the program in the help.
    """
    parser = ConciseArgumentParser(prog=name)
    parser.add_argument(f"--{SETTINGS}", action="config", help="YAML file with options of this command.")
    parser.add_function_arguments(function, as_group=False, sub_configs=True)
    parser.description = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parses arguments and instantiates the classes that they name.

    Args:
        parser: The parser.
        arguments: Options with their values, including files of components.

    Raises:
        ConfigurationError: If an option or a file is wrong, or a class refuses its settings.
    """
    try:
        values = parser.parse_args(list(arguments))
    except ConfigurationError as error:
        raise ConfigurationError(in_file(str(error), arguments)) from error
    for name, value in values.as_dict().items():
        refuse_nulls_of_parts(value, name)
    try:
        return dict(parser.instantiate(values).as_dict())
    except LightningEditError:
        raise
    except Exception as error:  # a constructor may raise any exception
        cause = informative_cause(error)
        if isinstance(cause, LightningEditError):
            raise cause from error
        raise ConfigurationError(f"{type(cause).__name__}: {cause}") from error


def concise(message: str, options: Sequence[str] = ()) -> str:
    """Condenses an error of jsonargparse to one line: the key, the problem and the nearest valid name.

    Args:
        message: The error: nested lines, with all alternatives of a union.
        options: The names of the command's options.
    """
    keys = _KEY.findall(message)
    classes = _CLASS.findall(message)
    if match := _UNRECOGNIZED.search(message):
        return _unrecognized(match[1], keys, classes, options)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    where = ".".join(keys[:1] + [key for key in keys[1:] if key not in keys[0]])
    if match := _OPTION.search(message):
        return _in(where, f"{_short(classes)} has no setting {match[1]}{_nearest(match[1], _settings(classes))}")
    if match := _NO_CLASS.search(message):
        nearest = _nearest(match[1], _public_names(f"lightning_edit.{where}s"))
        return _in(where, f"there is neither a class nor a file {match[1]}{nearest}")
    if match := _UNEXPECTED.search(message):
        return _in(where, f"there is no key {match[1]}{_nearest(f'--{match[1]}', options)}")
    problems = [line for line in lines if not _NOISE.search(line) and not _KEY.fullmatch(line.rstrip(":"))]
    problem = "; ".join(dict.fromkeys(_KEY.sub("", line).removeprefix(": ") for line in problems))
    if classes and "has no attribute" in problem:
        module, _, name = classes[-1].rpartition(".")
        return _in(where, f"there is no class {classes[-1]}{_nearest(name, _public_names(module))}")
    return _in(where, problem or message)


def _unrecognized(option: str, keys: Sequence[str], classes: Sequence[str], options: Sequence[str]) -> str:
    """Explains an unknown option, or an unknown setting of a component's settings class."""
    part, _, name = option.lstrip("-").rpartition(".")
    kind = _imported(classes[-1]) if classes else None
    settings = _hint(kind, part) if isinstance(kind, type) and part else None
    if isinstance(settings, type) and is_dataclass(settings):
        names = [field.name for field in fields(settings)]
        return _in(".".join([*keys[:1], part]), f"{settings.__name__} has no setting {name}{_nearest(name, names)}")
    return f"there is no option {option}{_nearest(option, options)}"


def refuse_nulls(kind: type, settings: Mapping[str, Any], where: str) -> None:
    """Refuses null for settings that are not optional, which jsonargparse accepts.

    Args:
        kind: The class whose constructor takes the settings.
        settings: Its arguments; nested components have class_path and init_args.
        where: Key of the settings, for messages.

    Raises:
        ConfigurationError: If one is null.
    """
    for name, value in settings.items():
        hint, key = _hint(kind, name), f"{where}.{name}"
        if value is None and hint is not None and type(None) not in get_args(hint) and hint is not Any:
            raise ConfigurationError(f"{key}: null is not possible here; leave the key out for its default")
        refuse_nulls_of_parts(value, key)
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
            refuse_nulls(hint, value, key)


def refuse_nulls_of_parts(value: Any, where: str) -> None:
    """Applies :func:`refuse_nulls` to a component with class_path and init_args, or to a list of them.

    Raises:
        ConfigurationError: If a setting is null but not optional.
    """
    for part, place in _parts(value, where):
        if isinstance(kind := _imported(str(part.get("class_path"))), type):
            refuse_nulls(kind, part.get("init_args") or {}, place)


def _parts(value: Any, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yields a setting's components and their keys: itself, or those of a list."""
    if isinstance(value, Mapping) and "class_path" in value:
        yield value, where
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _parts(item, f"{where}[{number}]")


def takes_class(kind: type, name: str) -> bool:
    """Whether a setting takes an object of a class, which a file may name by its path alone.

    Args:
        kind: The class whose constructor takes the setting.
        name: The setting.
    """
    hint = _hint(kind, name)
    kinds = [one for one in (hint, *get_args(hint)) if isinstance(one, type)]
    return any(one.__module__ not in ("builtins", "types", "typing", "pathlib") for one in kinds)


def _hint(kind: type, name: str) -> Any:
    """Returns the annotation of a constructor's argument, or None."""
    for one in kind.__mro__:
        try:
            hints = get_type_hints(vars(one)["__init__"]) if "__init__" in vars(one) and one is not object else {}
        except NameError:  # annotations that are imported for type checkers only
            continue
        if name in hints:
            return hints[name]
    return None


def in_file(message: str, arguments: Iterable[str]) -> str:
    """Prepends the file and line that contain the word a message complains about.

    Args:
        message: A message of :func:`concise`.
        arguments: The command line.
    """
    words = re.findall(r"(?:setting|key|class|Got value:) ([^\s;,]+)", message)
    name = words[0].rpartition(".")[2] if words else ""
    for argument in arguments:
        path = Path(argument.partition("=")[2] or argument)
        if name and path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if line := next((number for number, line in enumerate(text, 1) if name in line), None):
                return f"{path}, line {line}: {message}"
    return message


def informative_cause(error: BaseException) -> BaseException:
    """Finds the cause of a jsonargparse error: one of this package, or else the first from other code."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    known = [one for one in chain if isinstance(one, LightningEditError)]
    others = [one for one in chain if not _raised_by(one).startswith("jsonargparse")]
    return [*known, *others, error][0]


def _raised_by(error: BaseException) -> str:
    """Returns the name of the module that raised an error."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return "" if frames is None else str(frames.tb_frame.f_globals.get("__name__", ""))


def _in(where: str, problem: str) -> str:
    return f"{where}: {problem}" if where else problem


def _short(classes: Sequence[str]) -> str:
    return classes[-1].rpartition(".")[2] if classes else "it"


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower_case = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, 1, cutoff=0.5)
    return f"; did you mean {by_lower_case[close[0]]}?" if close else ""


def _settings(classes: Sequence[str]) -> list[str]:
    """Lists the constructor's arguments of the innermost class and its base classes."""
    kind = _imported(classes[-1]) if classes else None
    if not isinstance(kind, type):
        return []
    constructors = [vars(one)["__init__"] for one in kind.__mro__ if "__init__" in vars(one) and one is not object]
    return list(dict.fromkeys(name for one in constructors for name in inspect.signature(one).parameters))


def _public_names(module: str) -> list[str]:
    try:
        return list(getattr(importlib.import_module(module), "__all__", ()))
    except ImportError:
        return []


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
