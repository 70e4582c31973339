"""W&B workspaces from YAML files, so that everybody sees the same curves."""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.files import write_json

_KINDS = ("y", "regex", "bar")
"""Panel types: curves of named values, curves of values whose names match, or bars with one bar per run."""


def has_wandb_key() -> bool:
    """Whether a W&B API key is set in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def workspace(path: str | Path, entity: str, project: str) -> Any:
    """Builds the W&B workspace that a file describes.

    Args:
        path: YAML file with a name and sections, each with a name and panels; a panel has a title and one of y, regex
            and bar.
        entity: W&B account or team.
        project: W&B project.

    Raises:
        ConfigurationError: If the file is invalid, or wandb-workspaces is not installed.
        SourceNotFoundError: If there is no such file.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigurationError("dashboards need the package wandb-workspaces: pip install wandb-workspaces")
    import wandb_workspaces.workspaces as ws

    content = _read(Path(path))
    sections = [
        ws.Section(name=str(section["name"]), panels=[_panel(path, panel) for panel in section["panels"]], is_open=True)
        for section in content["sections"]
    ]
    return ws.Workspace(entity=entity, project=project, name=str(content["name"]), sections=sections)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass a YAML file of a dashboard, such as @training")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable YAML file ({error})") from error
    sections = content.get("sections") if isinstance(content, dict) else None
    if not isinstance(sections, list) or not sections or not content.get("name"):
        raise ConfigurationError(f"{path}: expected a name and a list of sections")
    for number, section in enumerate(sections):
        if not isinstance(section, dict) or not section.get("name") or not isinstance(section.get("panels"), list):
            raise ConfigurationError(f"{path}: sections[{number}]: expected a name and a list of panels")
    return dict(content)


def _panel(path: str | Path, panel: Any) -> Any:
    import wandb_workspaces.reports.v2

    # The package defines these names at run time.
    wr: Any = wandb_workspaces.reports.v2
    kinds = [kind for kind in _KINDS if isinstance(panel, dict) and kind in panel]
    if len(kinds) != 1 or set(panel) - {"title", *kinds}:
        raise ConfigurationError(f"{path}: a panel has a title and one of {', '.join(_KINDS)}; found {panel!r}")
    title, (kind,) = str(panel.get("title", "")), kinds
    if kind == "bar":
        return wr.BarPlot(title=title, metrics=list(panel["bar"]))
    if kind == "regex":
        return wr.LinePlot(title=title, x="Step", metric_regex=str(panel["regex"]))
    return wr.LinePlot(title=title, x="Step", y=list(panel["y"]))


def save_specification(dashboard: Any, path: str | Path) -> Path:
    """Writes the workspace as JSON, as W&B would receive it."""
    write_json(path, json.loads(dashboard._to_model().model_dump_json(by_alias=True)))
    return Path(path)
