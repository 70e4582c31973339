"""The configurations and checkpoints that come with the package, by name."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from lightning_edit.errors import ConfigurationError

MARK = "@"
"""Prefix of shipped names on the command line."""
_CONFIGS = ("experiment", "comparison", "dashboard")
_FOLDERS = {"--config": _CONFIGS, "-c": _CONFIGS, "--editor": ("editor",)}
"""Configuration folders in which each option's names are looked up."""
_CHECKPOINT = "--ckpt_path"
"""Option whose names are looked up among the checkpoints."""


def configs_folder() -> Path:
    """Returns the configuration folder: in the installed package, or next to it in a checkout."""
    return _package_data_folder("configs")


def checkpoints_folder() -> Path:
    """Returns the folder of trained editors and statistics: in the installed package, or next to it in a checkout."""
    return _package_data_folder("checkpoints")


def _package_data_folder(name: str) -> Path:
    packaged = Path(str(resources.files("lightning_edit"))) / name
    return packaged if packaged.is_dir() else packaged.parents[1] / name


def shipped_names(folder: str) -> list[str]:
    """Lists the configurations in a subfolder; names for other models start with a folder ("gpt2-xl/rome")."""
    root = configs_folder() / folder
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def shipped_file(name: str, folders: Sequence[str]) -> Path:
    """Finds the file of a shipped configuration.

    Args:
        name: Its name, or words that only one name has, such as "mend-zsre" for "mend-smollm2-zsre".
        folders: Subfolders to search.

    Raises:
        ConfigurationError: If none or several match.
    """
    root = configs_folder()
    paths = {known: root / folder / f"{known}.yaml" for folder in folders for known in shipped_names(folder)}
    return _file_called(name, paths)


def shipped_checkpoints() -> dict[str, Path]:
    """Returns the files of the trained editors that come with the package, by name."""
    return {path.stem: path for path in sorted(checkpoints_folder().glob("*.ckpt"))}


def shipped_checkpoint(name: str) -> Path:
    """Finds the file of a shipped checkpoint.

    Args:
        name: Its name, or words that only one name has, such as "mend" for "mend-smollm2-135m-instruct-zsre".

    Raises:
        ConfigurationError: If none or several match.
    """
    return _file_called(name, shipped_checkpoints())


def _file_called(name: str, names: Mapping[str, Path]) -> Path:
    words = name.split("-")
    matches = [name] if name in names else [known for known in names if set(words) <= set(known.split("-"))]
    if len(matches) == 1:
        return names[matches[0]]
    if matches:
        raise ConfigurationError(f"{MARK}{name} could be {', '.join(matches)}; give one of these names")
    close = difflib.get_close_matches(name, names, 1, cutoff=0.3)
    hint = f"did you mean {MARK}{close[0]}?" if close else f"there are {', '.join(names)}"
    raise ConfigurationError(f"nothing that comes with the package is called {name}; {hint}")


def with_shipped_files(arguments: Sequence[str]) -> list[str]:
    """Replaces shipped names on a command line by files ("--config @mend-zsre", "--ckpt_path @mend").

    Args:
        arguments: The command line.

    Raises:
        ConfigurationError: If a name matches none or several.
    """
    resolved, option = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if value.startswith(MARK):
            argument = f"{name}{equals}{_file_for(name, value)}"
        elif argument.startswith(MARK):
            argument = _file_for(option, argument)
        resolved.append(argument)
        option = argument
    return resolved


def _file_for(option: str, value: str) -> str:
    """Returns the file that a value names, or the value if the option takes no shipped names."""
    if option in _FOLDERS:
        return str(shipped_file(value.removeprefix(MARK), _FOLDERS[option]))
    return str(shipped_checkpoint(value.removeprefix(MARK))) if option == _CHECKPOINT else value


def copy_configs(folder: str | Path) -> Path:
    """Copies all shipped configurations, which refer to one another, into a new folder.

    Raises:
        ConfigurationError: If the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already; choose a new folder")
    shutil.copytree(configs_folder(), folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    return folder
