"""Builds editors from YAML files."""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_edit.components import build
from lightning_edit.editors.base import Editor
from lightning_edit.errors import ConfigurationError, SourceNotFoundError


def configured_editor(path: str, statistics: str | None = None) -> Editor:
    """The editor of a YAML file with class_path and init_args.

    Args:
        path: The file.
        statistics: Folder of fitted statistics, in place of the one that the file names.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If it describes no editor.
    """
    if not Path(path).is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass a YAML file with class_path and init_args")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable YAML file of an editor ({error})") from error
    if not isinstance(content, dict) or "class_path" not in content:
        raise ConfigurationError(f"{path}: expected class_path and init_args of an editor")
    configured = content.get("init_args") or {}
    if not isinstance(configured, dict):
        raise ConfigurationError(f"{path}: init_args: expected names and values, found {configured!r}")
    arguments = {**configured, **({} if statistics is None else {"statistics": statistics})}
    try:
        return build({"class_path": content["class_path"], "init_args": arguments}, Editor, path)
    except TypeError as error:
        raise ConfigurationError(f"{path}: {error}") from error
