"""What is compared: editors, data sets and protocols, from one YAML file."""

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
    """An editor of a comparison; one of the first three says which.

    Args:
        editor: YAML file of an editor that needs no training, or the name of a shipped one ("@rome"); statistics are
            collected where it needs some.
        checkpoint: Checkpoint of a trained editor, or the name of a shipped one ("@mend").
        experiment: YAML file of an experiment, which is run (fit) for its checkpoint.
        records: Limit of the records of each data set, in place of the comparison's; 0 takes all.
        skip: Data set to the reason why this editor cannot be used on it.
        seconds_per_edit: What editing a record takes, for the plan's estimate, until cells of this editor are done.
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
        requests_per_edit: Records edited jointly; 0 edits all of a cell at once, 1 each on the clean model.
        sequential: Edit one after another, each on top of all before.
        every: Measure a sequence after every so many edits, for its curves; 0 measures at its end alone.
        text: Plain text that perplexity is measured on along a sequence; none is measured if not given.
        editors: Names of the editors that it is used with; all, if none is given.
    """

    requests_per_edit: int = 1
    sequential: bool = False
    editors: list[str] = field(default_factory=list)
    every: int = 0
    text: str | None = None


@dataclass(frozen=True)
class WandbSettings:
    """Where the cells are logged on W&B, offline unless a key is set.

    Args:
        project: W&B project.
        group: Group of the cells' runs; the grid's output folder if none is given.
        predictions: Predictions in the table of each cell.
    """

    project: str = "lightning_edit"
    group: str | None = None
    predictions: int = 200


@dataclass(frozen=True)
class Comparison:
    """A grid of editors × data sets × protocols on one base model.

    Args:
        editors: Name to editor.
        data: Name to data set (class_path and init_args of a source of records).
        protocols: Name to protocol.
        output: Folder for the cells and the report.
        language_model: The base model, and how it is loaded.
        corpus: Text that statistics of keys are collected on (init_args of TextCorpus). Without one, editors take those
            that come with the package, or else some on text that the model samples itself.
        records: Limit of the records of each data set; 0 takes all.
        seed: Seed of everything random.
        eval_batch_size: Records that are evaluated side by side.
        evaluation: How records are evaluated.
        reference: Editor that others are compared with, record by record; the first one if none is given.
        resamples: Bootstrap samples of the confidence intervals.
        seconds_per_probe: What asking a probe takes, for the estimate of the plan, until cells are done.
        wandb: Log each cell as a run on W&B; none is logged if not given.
        traces: Folders that ``trace`` wrote, which report.html shows as well.
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
        """A data set's source of records, limited to some records (0: all)."""
        description = dict(self.data[data])
        arguments = {**(description.get("init_args") or {}), **({"limit": limit} if limit else {})}
        described = {"class_path": description.get("class_path"), "init_args": arguments}
        return build(described, RecordSource, f"data.{data}")

    def text(self) -> TextCorpus:
        """The corpus of statistics.

        Raises:
            ConfigurationError: If none is configured.
        """
        if self.corpus is None:
            raise ConfigurationError("corpus: statistics of keys have to be collected, and no text is configured")
        return _of(TextCorpus, self.corpus, "corpus")


def read_comparison(
    path: str | Path, overrides: Mapping[str, Any] | None = None, chat_template: bool | None = None
) -> Comparison:
    """Reads a comparison from a YAML file; files that it names are looked for beside it, then in the current folder.

    Args:
        path: The file.
        overrides: Settings in place of those of the file.
        chat_template: Whether prompts are rendered with the chat template; as the file says if None.

    Raises:
        SourceNotFoundError: If there is no such file.
        ConfigurationError: If a setting is missing, unknown or out of its range.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass a YAML file of a comparison, such as @knowedit-smollm2")
    content = _yaml(path)
    content.update({name: value for name, value in (overrides or {}).items() if value is not None})
    model = content.get("language_model")
    if isinstance(model, str):
        content["language_model"] = _yaml(_beside(path, model))
    if chat_template is not None:
        content["language_model"] = {**(content.get("language_model") or {}), "chat_template": chat_template}
    try:
        editors = content.get("editors")
        if isinstance(editors, dict):
            content["editors"] = {name: _with_files(path, entry) for name, entry in editors.items()}
        return _of(Comparison, content, "")
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _with_files(path: Path, entry: Any) -> Any:
    """An editor's entry with the files that its names stand for."""
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
"""Key of an editor's entry to what finds the file of a shipped name."""


def _file(path: Path, key: str, name: str) -> Path:
    return _SHIPPED[key](name.removeprefix(MARK)) if name.startswith(MARK) else _beside(path, name)


def _beside(path: Path, name: str) -> Path:
    beside = path.parent / name
    return beside if beside.exists() else Path(name)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: expected names and values")
    return {str(name): value for name, value in content.items()}


def _of(kind: type[T], values: Any, where: str) -> T:
    """A settings class from plain data, with the settings classes in it.

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
    # A settings class, or one of them or none.
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and is_dataclass(kind) and value is not None:
            return _of(kind, value, where)
    if hint in (int, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigurationError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value
