"""Settings of a comparison: editors, data sets and protocols, from one YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_edit import ranges
from lightning_edit.components import build
from lightning_edit.data import RecordSource, TextCorpus
from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.shipped import MARK, shipped_checkpoint, shipped_file

T = TypeVar("T")


@dataclass(frozen=True)
class EditorEntry:
    """An editor of a comparison, given by exactly one of ``editor``, ``checkpoint`` and ``experiment``.

    Args:
        editor: YAML file of an editor that needs no training, or the name of a shipped one ("@rome"); statistics are
            collected if it needs them.
        checkpoint: Checkpoint of a trained editor, or the name of a shipped one ("@mend").
        experiment: YAML file of an experiment, which is run (fit) to get its checkpoint.
        records: Maximum number of records per data set; overrides the comparison's. 0 takes all.
        skip: Reasons not to use this editor, by data set.
        seconds_per_edit: Seconds to edit a record, for the plan's estimate until cells of this editor are done.
    """

    editor: str | None = None
    checkpoint: str | None = None
    experiment: str | None = None
    records: int | None = None
    skip: dict[str, str] = field(default_factory=dict)
    seconds_per_edit: float | None = None


@dataclass(frozen=True)
class Protocol:
    """How the records of a cell are edited.

    Args:
        requests_per_edit: Number of records edited jointly; 0 edits all of a cell at once, 1 each on the clean model.
        sequential: Edit one after another, each on top of the earlier ones.
        every: Number of edits between measurements of a sequence, for its curves; 0 measures only at the end.
        text: Plain text for measuring perplexity along a sequence; not measured if not given.
        editors: Names of the editors to use it with; all by default.
    """

    requests_per_edit: int = 1
    sequential: bool = False
    editors: list[str] = field(default_factory=list)
    every: int = 0
    text: str | None = None


@dataclass(frozen=True)
class WandbSettings:
    """Logging of the cells to W&B, offline unless a key is set.

    Args:
        project: W&B project.
        group: Group of the cells' runs; the grid's output folder by default.
        predictions: Number of predictions in each cell's table.
    """

    project: str = "lightning_edit"
    group: str | None = None
    predictions: int = 200


@dataclass(frozen=True)
class Comparison:
    """A grid of editors × data sets × protocols on one base model.

    Args:
        editors: Editors by name.
        data: Data sets by name (class_path and init_args of a source of records).
        protocols: Protocols by name.
        output: Folder for the cells and the report.
        language_model: The base model, and how it is loaded.
        corpus: Text for collecting key statistics (init_args of TextCorpus). By default, editors use the statistics
            that come with the package, or else collect some on text sampled from the model.
        records: Maximum number of records per data set; 0 takes all.
        seed: Seed of everything random.
        eval_batch_size: Number of records evaluated together.
        evaluation: How records are evaluated.
        reference: Editor that others are compared with, record by record; the first one by default.
        resamples: Number of bootstrap samples for the confidence intervals.
        seconds_per_probe: Seconds to ask a probe, for the plan's estimate until cells are done.
        wandb: Log each cell as a run on W&B; nothing is logged by default.
        traces: Output folders of ``trace``, to show in report.html.
    """

    editors: dict[str, EditorEntry]
    data: dict[str, dict[str, Any]]
    protocols: dict[str, Protocol] = field(default_factory=lambda: {"independent": Protocol()})
    output: str = "runs/comparison"
    language_model: LanguageModelSettings = LanguageModelSettings()
    corpus: dict[str, Any] | None = None
    records: int = 50
    seed: int = 0
    eval_batch_size: int = 10
    evaluation: EvaluationSettings = EvaluationSettings()
    reference: str | None = None
    resamples: int = 2000
    seconds_per_probe: float | None = None
    wandb: WandbSettings | None = None
    traces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ranges.at_least(0, "comparison", records=self.records)
        ranges.at_least(1, "comparison", eval_batch_size=self.eval_batch_size, resamples=self.resamples)
        for what, entries in (("editors", self.editors), ("data", self.data), ("protocols", self.protocols)):
            if not entries:
                raise ConfigurationError(f"{what}: name at least one")
            for name in entries:
                if not name or "/" in name or name.startswith("."):
                    raise ConfigurationError(f"{what}: {name!r} names a folder; choose a name without slashes and dots")
        for name, entry in self.editors.items():
            if sum(path is not None for path in (entry.editor, entry.checkpoint, entry.experiment)) != 1:
                raise ConfigurationError(f"editors.{name}: give one of editor, checkpoint and experiment")
            for data in set(entry.skip) - set(self.data):
                raise ConfigurationError(f"editors.{name}.skip: there is no data set {data}; see data")
        for name, protocol in self.protocols.items():
            numbers = {"requests_per_edit": protocol.requests_per_edit, "every": protocol.every}
            ranges.at_least(0, f"protocols.{name}", **numbers)
            if not protocol.sequential and (protocol.every or protocol.text is not None):
                raise ConfigurationError(f"protocols.{name}: every and text are for sequences; set sequential: true")
            for editor in set(protocol.editors) - set(self.editors):
                raise ConfigurationError(f"protocols.{name}.editors: there is no editor {editor}; see editors")
        if self.reference is not None and self.reference not in self.editors:
            raise ConfigurationError(f"reference: there is no editor {self.reference}; see editors")

    def source(self, data: str, limit: int) -> RecordSource:
        """Builds a data set's source of records, with a maximum number of records (0: all)."""
        description = dict(self.data[data])
        arguments = {**(description.get("init_args") or {}), **({"limit": limit} if limit else {})}
        described = {"class_path": description.get("class_path"), "init_args": arguments}
        return build(described, RecordSource, f"data.{data}")

    def text(self) -> TextCorpus:
        """Builds the corpus for key statistics.

        Raises:
            ConfigurationError: If none is configured.
        """
        if self.corpus is None:
            raise ConfigurationError("corpus: statistics of keys have to be collected, and no text is configured")
        return _of(TextCorpus, self.corpus, "corpus")


def read_comparison(
    path: str | Path, overrides: Mapping[str, Any] | None = None, chat_template: bool | None = None
) -> Comparison:
    """Reads a comparison from a YAML file; paths in it are relative to its folder, or else to the current folder.

    Args:
        path: The file.
        overrides: Settings that override the file's; None is skipped.
        chat_template: Whether prompts are rendered with the chat template; None leaves it to the file.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If a setting is missing, unknown or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass a YAML file of a comparison, such as @knowedit-smollm2")
    content = _yaml(path)
    content.update({name: value for name, value in (overrides or {}).items() if value is not None})
    model = content.get("language_model")
    if isinstance(model, str):
        content["language_model"] = _yaml(_resolve(path, model))
    if chat_template is not None:
        content["language_model"] = {**(content.get("language_model") or {}), "chat_template": chat_template}
    try:
        editors = content.get("editors")
        if isinstance(editors, dict):
            content["editors"] = {name: _with_resolved_files(path, entry) for name, entry in editors.items()}
        return _of(Comparison, content, "")
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _with_resolved_files(path: Path, entry: Any) -> Any:
    """Resolves the names in an editor's entry to files."""
    if not isinstance(entry, dict):
        return entry
    return {
        name: str(_file(path, name, value)) if name in _SHIPPED and isinstance(value, str) else value
        for name, value in entry.items()
    }


_SHIPPED: dict[str, Callable[[str], Path]] = {
    "editor": lambda name: shipped_file(name, ["editor"]),
    "experiment": lambda name: shipped_file(name, ["experiment"]),
    "checkpoint": shipped_checkpoint,
}
"""Functions that find the file of a shipped name, by key of an editor's entry."""


def _file(path: Path, key: str, name: str) -> Path:
    return _SHIPPED[key](name.removeprefix(MARK)) if name.startswith(MARK) else _resolve(path, name)


def _resolve(path: Path, name: str) -> Path:
    candidate = path.parent / name
    return candidate if candidate.exists() else Path(name)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: expected names and values")
    return {str(name): value for name, value in content.items()}


def _of(kind: type[T], values: Any, where: str) -> T:
    """Builds a settings class, and those nested in it, from plain data.

    Raises:
        ConfigurationError: If a value is missing or unknown.
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where or 'the file'}: expected names and values, found {values!r}")
    if not is_dataclass(kind):
        return build({"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(values)}, kind, where)
    hints, names = get_type_hints(kind), [one.name for one in fields(kind)]
    if unknown := sorted(set(map(str, values)) - set(names)):
        raise ConfigurationError(f"{where}.{unknown[0]}".lstrip(".") + f": unknown; there are {', '.join(names)}")
    arguments = {name: _value(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in values.items()}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{where or 'the file'}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, list) and get_origin(hint) is tuple:
        return tuple(value)
    nested = {"editors": EditorEntry, "protocols": Protocol}.get(where)
    if nested is not None and isinstance(value, Mapping):
        return {str(name): _of(nested, entry or {}, f"{where}.{name}") for name, entry in value.items()}
    # A settings class, possibly optional.
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and is_dataclass(kind) and value is not None:
            return _of(kind, value, where)
    if hint in (int, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigurationError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
