"""The configurations that come with the package, by name."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lightning_edit.errors import ConfigurationError

MARK = "@"
"""What the name of a shipped configuration begins with on the command line."""
_CONFIGS = ("experiment", "comparison", "dashboard")
_FOLDERS = {"--config": _CONFIGS, "-c": _CONFIGS, "--editor": ("editor",)}
"""Option to the folders in which its names are looked up."""


def configs_folder() -> Path:
    """The folder of configurations: in the installed package, or beside it in a checkout."""
    packaged = Path(str(resources.files("lightning_edit"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parents[1] / "configs"


def shipped_names(folder: str) -> list[str]:
    """Names of the configurations in a subfolder; those of other models have a folder in front ("gpt2-xl/rome")."""
    root = configs_folder() / folder
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def shipped_file(name: str, folders: Sequence[str]) -> Path:
    """The file of a shipped configuration.

    Args:
        name: Its name, or words of it that only one name has, such as "mend-zsre" for "mend-smollm2-zsre".
        folders: Subfolders to look in.

    Raises:
        ConfigurationError: If none or several match.
    """
    names = {name: folder for folder in folders for name in shipped_names(folder)}
    words = name.split("-")
    matches = [name] if name in names else [known for known in names if set(words) <= set(known.split("-"))]
    if len(matches) == 1:
        return configs_folder() / names[matches[0]] / f"{matches[0]}.yaml"
    if matches:
        raise ConfigurationError(f"{MARK}{name} could be {', '.join(matches)}; give one of these names")
    close = difflib.get_close_matches(name, names, 1, cutoff=0.3)
    hint = f"did you mean {MARK}{close[0]}?" if close else f"there are {', '.join(names)}"
    raise ConfigurationError(f"no shipped configuration is called {name}; {hint}")


def with_shipped_files(arguments: Sequence[str]) -> list[str]:
    """A command line with the files in place of the names of shipped configurations ("--config @mend-zsre").

    Args:
        arguments: The command line.

    Raises:
        ConfigurationError: If a name matches none or several.
    """
    resolved, option = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in _FOLDERS and value.startswith(MARK):
            argument = f"{name}{equals}{shipped_file(value.removeprefix(MARK), _FOLDERS[name])}"
        elif option in _FOLDERS and argument.startswith(MARK):
            argument = str(shipped_file(argument.removeprefix(MARK), _FOLDERS[option]))
        resolved.append(argument)
        option = argument
    return resolved


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
