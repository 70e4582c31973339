"""Builds editors from YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from lightning_edit.components import class_of
from lightning_edit.editors.base import Editor
from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.parsing import ConciseArgumentParser, parse, takes_class

EditorT = TypeVar("EditorT", bound=Editor)


def check_editor_file(path: str | Path) -> None:
    """Refuses a YAML file that describes no editor, or names a class whose module is not allowed.

    Args:
        path: The file.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If it is not a readable file with class_path and init_args, or names such a class.
    """
    content = _read_yaml(path, "an editor, with class_path and init_args")
    if not isinstance(content, dict) or "class_path" not in content:
        raise ConfigurationError(f"{path}: expected class_path and init_args of an editor")
    if not isinstance(content.get("init_args") or {}, dict):
        raise ConfigurationError(f"{path}: init_args: expected names and values, found {content['init_args']!r}")
    _check_classes(content, str(path))
    kind = class_of(str(content["class_path"]), str(path))
    if not (isinstance(kind, type) and issubclass(kind, Editor)):
        raise ConfigurationError(f"{path}: {content['class_path']} is not a subclass of Editor")


def check_settings_file(path: str | Path) -> None:
    """Refuses a YAML file of a command's options whose editor names a class that is not allowed.

    Args:
        path: The file.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If it is not readable, or names such a class, or a file that does.
    """
    content = _read_yaml(path, "options of the command")
    editor = content.get("editor") if isinstance(content, dict) else None
    if isinstance(editor, str):
        # jsonargparse looks for files next to the one that names them, and then in the current folder.
        candidate = Path(path).parent / editor
        if candidate.is_file() or Path(editor).is_file():
            check_editor_file(candidate if candidate.is_file() else editor)
        elif "." in editor:
            class_of(editor, str(path))
    else:
        _check_classes(editor, str(path))


def _read_yaml(path: str | Path, content: str) -> Any:
    """Reads a YAML file; ``content`` says what it should hold, for messages."""
    if not Path(path).is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass a YAML file of {content}")
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable YAML file of {content} ({error})") from error


def configured_editor(path: str, **settings: str) -> Editor:
    """Builds the editor of a YAML file; see :func:`configured_editor_of`."""
    # mypy does not allow an abstract class as an argument that is a type.
    editor: Editor = configured_editor_of(cast(Any, Editor), path, **settings)
    return editor


def configured_editor_of(base: type[EditorT], path: str, **settings: str) -> EditorT:
    """Builds the editor of a YAML file with class_path and init_args, with the types of its settings checked.

    Args:
        base: Class that the editor has to be a subclass of.
        path: The file.
        settings: Settings that override the file's, as on the command line, such as ``statistics="folder"``.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If it describes no editor, names a class whose module is not allowed, or has an unknown
            setting.
    """
    check_editor_file(path)
    parser = ConciseArgumentParser()
    parser.add_argument("--editor", type=base, enable_path=True)
    arguments = [f"--editor={path}", *(f"--editor.{name}={value}" for name, value in settings.items())]
    try:
        editor: EditorT = parse(parser, arguments)["editor"]
    except ConfigurationError as error:
        message = str(error)
        raise ConfigurationError(message if str(path) in message else f"{path}: {message}") from error
    return editor


def _check_classes(content: Any, where: str) -> None:
    """Refuses classes of modules that are not allowed, however deep in the file."""
    if isinstance(content, list):
        for value in content:
            _check_classes(value, where)
    if not isinstance(content, dict):
        return
    kind = class_of(str(content["class_path"]), where) if "class_path" in content else None
    for name, value in content.items():
        _check_classes(value, where)
        if name == "init_args" and isinstance(kind, type) and isinstance(value, dict):
            for setting, path in value.items():
                if isinstance(path, str) and "." in path and takes_class(kind, setting):
                    class_of(path, where)
