"""Base of the benchmark readers: finds files, reads them safely, and counts what was changed or dropped."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import regex

from lightning_edit import ranges
from lightning_edit.errors import (
    ConfigurationError,
    DataFormatError,
    RequestError,
    SourceNotFoundError,
)
from lightning_edit.hub import could_be_hub_id
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind, find_subject
from lightning_edit.words import has_lone_surrogate


@dataclass
class ReadReport:
    """The records read from a file, and counts of what was dropped, changed or noted.

    Args:
        records: The records.
        dropped: Reason to number of records or probes left out.
        changed: Reason to number of values that were corrected.
        noted: Peculiarity to number of occurrences; nothing was changed.
        origin: Where the records come from.
    """

    records: list[EditRecord] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    origin: str = ""

    def summary(self) -> str:
        """Returns a one-line summary."""
        parts = [f"{self.origin}: {len(self.records)} records"]
        for label, counts in (("dropped", self.dropped), ("changed", self.changed), ("noted", self.noted)):
            parts += [f"{label} {reason}: {count}" for reason, count in sorted(counts.items())]
        return "; ".join(parts)


_LIST_INDEX = re.compile(r"\[\d+\]")


class Entry:
    """One raw record of a file, with typed access whose errors locate the wrong value.

    Args:
        values: The decoded JSON object.
        path: The file.
        index: The record's position in the file.
        report: Where changes are counted.
        trail: The field that holds ``values``, for messages; empty at the top of a record.
    """

    def __init__(self, values: object, path: Path, index: int | str, report: ReadReport, trail: str = "") -> None:
        self.path, self.index, self.report, self.trail = path, index, report, trail
        if not isinstance(values, dict):
            raise DataFormatError(f"expected an object, found {_kind(values)}", path, index, trail or None)
        self.values: dict[str, Any] = values
        self._asked: set[str] = set()
        self._children: dict[str, Entry] = {}

    def __contains__(self, name: str) -> bool:
        self._asked.add(name)
        return name in self.values

    def is_unread(self, name: str) -> bool:
        """Whether a field exists that has not been read."""
        return name in self.values and name not in self._asked

    def note_unread_fields(self) -> None:
        """Counts the fields that were not read, by name, here and in the nested objects that were read."""
        for name in sorted(set(self.values) - self._asked):
            # Without list indices, so that a field of many items is counted as one.
            full = _LIST_INDEX.sub("", self._trail(name))
            self.report.noted[f"field {full!r} not read"] += 1
        for child in self._children.values():
            child.note_unread_fields()

    def error(self, name: str, problem: str) -> DataFormatError:
        """Builds an error about one field of this record."""
        full = f"{self.trail}.{name}" if self.trail else name
        return DataFormatError(problem, self.path, self.index, full)

    def _typed(self, name: str, kinds: tuple[type, ...], expected: str) -> Any:
        self._asked.add(name)
        if name not in self.values:
            raise self.error(name, f"missing; the record has {sorted(self.values)}")
        value = self.values[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(name, f"expected {expected}, found {_kind(value)}")
        return value

    def text(self, name: str) -> str:
        """Returns a string, stripped of surrounding white space (counted if any)."""
        return self.strip(self._typed(name, (str,), "a string"))

    def strip(self, value: str) -> str:
        """Strips surrounding white space from ``value`` (counted if any)."""
        if value != value.strip():
            self.report.changed["white space around a text stripped"] += 1
        if has_lone_surrogate(value):
            raise DataFormatError(f"a text holds half of a surrogate pair: {value!a}", self.path, self.index)
        return value.strip()

    def number(self, name: str) -> int:
        """Returns an integer."""
        return int(self._typed(name, (int,), "a whole number"))

    def texts(self, name: str) -> list[str]:
        """Returns a list of strings, each stripped."""
        values = self._typed(name, (list,), "a list of strings")
        for position, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{name}[{position}]", f"expected a string, found {_kind(value)}")
        return [self.strip(value) for value in values]

    def child(self, name: str) -> Entry:
        """Returns a nested object."""
        return self._nested(name, self._typed(name, (dict,), "an object"))

    def children(self, name: str) -> list[Entry]:
        """Returns a list of nested objects."""
        values = self._typed(name, (list,), "a list of objects")
        return [self._nested(f"{name}[{position}]", value) for position, value in enumerate(values)]

    def _nested(self, name: str, values: object) -> Entry:
        """Returns a nested object, cached so that one entry tracks which of its fields were read."""
        if name not in self._children:
            self._children[name] = Entry(values, self.path, self.index, self.report, self._trail(name))
        return self._children[name]

    def answers(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Returns acceptable answers in any form: one string, aliases of one object, or objects with aliases.

        A string is one object with one name. A list of strings holds the names of one object. In a list of lists the
        outer list holds objects and the inner ones their aliases. Empty names and objects are left out and names
        repeated inside a probe are kept once; both are counted.
        """
        value = self._typed(name, (str, list), "a string or a list")
        if isinstance(value, str):
            objects = [[value]]
        elif all(isinstance(item, str) for item in value):
            objects = [value]
        elif all(isinstance(item, list) and all(isinstance(alias, str) for alias in item) for item in value):
            objects = value
        else:
            raise self.error(name, "expected a string, a list of strings, or a list of lists of strings")
        return self._clean_answers(objects)

    def _clean_answers(self, objects: list[list[str]]) -> tuple[tuple[str, ...], ...]:
        seen: set[str] = set()
        cleaned = []
        for aliases in objects:
            names = []
            for alias in map(self.strip, aliases):
                if alias in seen:
                    self.report.changed["answer repeated inside a probe removed"] += 1
                elif alias:
                    seen.add(alias)
                    names.append(alias)
            if names:
                cleaned.append(tuple(names))
            elif not any(alias.strip() for alias in aliases):
                self.report.changed["empty answer removed"] += 1
        return tuple(cleaned)

    def _trail(self, name: str) -> str:
        return f"{self.trail}.{name}" if self.trail else name


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataFormatError: If the file is not UTF-8, or not JSON (truncated, for example), with the position.
        SourceNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise SourceNotFoundError(f"{path}: no such file; pass the path of a data file, or of its folder")
    return decode_json(path.read_bytes(), path)


def decode_json(content: bytes, path: Path, record: int | None = None) -> Any:
    """Decodes JSON from a file, or from one of its lines.

    Args:
        content: The bytes.
        path: The file, for messages.
        record: Number of the line, if the content is one.

    Raises:
        DataFormatError: If it is not UTF-8 or not JSON, with the position; or a key occurs twice in one object.
    """
    try:
        # Some editors write a byte order mark, which is not part of the text.
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise DataFormatError(f"not valid UTF-8 at byte {error.start}; save the file as UTF-8", path, record) from error
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); is the file complete?",
            path,
            record,
        ) from error
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataFormatError(f"not usable JSON ({problem})", path, record) from error


def locate(source: str, names: Sequence[str]) -> Path:
    """Finds a benchmark's file: a local file, a local folder with one of ``names`` in it, or a data set on the Hub.

    Args:
        source: Path of a file or folder, or a Hub id such as "zjunlp/KnowEdit".
        names: File names of the benchmark's published layout, by preference; parent folders are optional.

    Raises:
        SourceNotFoundError: If nothing is found; the message says what to pass.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            matches = sorted(path.rglob(Path(name).name))
            if matches:
                return matches[0]
        raise SourceNotFoundError(f"{path}: the folder has none of {list(names)}; pass the file itself")
    if "/" not in source or not could_be_hub_id(source):
        raise SourceNotFoundError(f"{source}: no such file or folder; pass a local path or a Hub id (owner/name)")
    return _download(source, names)


def _download(hub_id: str, names: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        listed = HfApi().list_repo_files(hub_id, repo_type="dataset")
        matches = [file for name in names for file in listed if Path(file).name == Path(name).name]
        if matches:
            return Path(hf_hub_download(hub_id, matches[0], repo_type="dataset"))
    except Exception as error:  # the Hub client raises many kinds; all mean: not available
        raise SourceNotFoundError(
            f"the data set {hub_id!r} is neither a local path nor reachable on the Hub ({type(error).__name__}); "
            f"download one of {list(names)} and pass its path as source"
        ) from error
    raise SourceNotFoundError(f"the data set {hub_id!r} on the Hub has none of {list(names)}; pass a file's path")


class RecordSource(ABC):
    """Anything that yields edit records."""

    @abstractmethod
    def read(self) -> ReadReport:
        """Reads all records and counts everything that was changed, noted or dropped."""


class Benchmark(RecordSource):
    """Base class of published benchmarks: a file of edit records.

    Args:
        source: Path of the file or of its folder, or a Hub id (owner/name).
        split: Which of the benchmark's published files to read, if ``source`` is a folder or a Hub id.
        limit: Read at most this many of the file's records; None reads all.

    Raises:
        ConfigurationError: If the benchmark has no such split, or ``limit`` is not positive.
    """

    files: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, source: str, split: str = "test", limit: int | None = None) -> None:
        if split not in self.files:
            raise ConfigurationError(f"{type(self).__name__} has no split {split!r}; it has {sorted(self.files)}")
        ranges.at_least(1, type(self).__name__, limit=limit)
        self.source, self.split, self.limit = str(source), split, limit

    def read(self) -> ReadReport:
        """Reads the records and counts everything that was changed, noted or dropped.

        Raises:
            DataFormatError: If the file is broken, with the file, the record and the field.
            SourceNotFoundError: If there is no such file.
        """
        path = locate(self.source, self.files[self.split])
        report = ReadReport(origin=str(path))
        for entry in self.entries(read_json(path), path, report):
            try:
                report.records += with_extra_probes(self.parse(entry), entry)
                entry.note_unread_fields()
            except RequestError as error:
                raise DataFormatError(str(error), path, entry.index) from error
        report.records = with_unique_ids(report)
        if not report.records:
            raise DataFormatError("no usable record; is it the right file?", path)
        note_repeated_prompts(report)
        return report

    def entries(self, content: object, path: Path, report: ReadReport) -> list[Entry]:
        """Returns the file's records; override it if the file is not a list of objects."""
        if not isinstance(content, list):
            raise DataFormatError(f"expected a list of records at the top, found {_kind(content)}", path)
        return [Entry(values, path, index, report) for index, values in enumerate(content[: self.limit])]

    @abstractmethod
    def parse(self, entry: Entry) -> Iterator[EditRecord] | list[EditRecord]:
        """Turns one record of the file into edit records (none if it is dropped and counted)."""


EXTRA_PROBES = {
    "locality_prompt": (ProbeKind.LOCALITY, "locality_ground_truth", ""),
    "portability_prompt": (ProbeKind.PORTABILITY, "portability_ground_truth", ""),
    "ood_rephrase": (ProbeKind.GENERALIZATION, "", "ood"),
}
"""Probe fields of extended and flat files: prompt to kind, answer field ("": the target) and group."""
_DISTRACTING = "distracting_neighborhood_prompts"


def with_extra_probes(records: Iterable[EditRecord], entry: Entry) -> list[EditRecord]:
    """Adds probes from the extra fields of extended files to the first record of an entry.

    Reads, unless the benchmark's own reader did: "portability" and "locality" by group, the flat fields of
    :data:`EXTRA_PROBES`, and "distracting_neighborhood_prompts" (locality of the group "Distracting_Neighborhood").
    """
    kept = list(records)
    if not kept:
        return []
    probes = _without_own_prompts(entry, kept[0], _extra_probes(entry, kept[0].requests[0].target))
    return [replace(kept[0], probes=kept[0].probes + probes), *kept[1:]]


def _without_own_prompts(entry: Entry, record: EditRecord, probes: Iterable[Probe]) -> tuple[Probe, ...]:
    """Drops locality probes with the prompt of the edit."""
    edited, kept = {request.prompt for request in record.requests}, []
    for probe in probes:
        if probe.kind is ProbeKind.LOCALITY and probe.prompt in edited:
            entry.report.dropped["locality probe that asks the edit itself"] += 1
        else:
            kept.append(probe)
    return tuple(kept)


def _extra_probes(entry: Entry, target: str) -> Iterator[Probe]:
    for kind in (ProbeKind.PORTABILITY, ProbeKind.LOCALITY):
        if entry.is_unread(str(kind)) and isinstance(entry.values[str(kind)], dict):
            groups = entry.child(str(kind))
            for group in groups.values:
                for item in groups.children(group):
                    yield from make_probe(item, item.text("prompt"), item.answers("ground_truth"), kind, group)
    for name, (kind, answer, group) in EXTRA_PROBES.items():
        if entry.is_unread(name) and isinstance(entry.values[name], str):
            answers = entry.answers(answer) if answer else ((target,),)
            yield from make_probe(entry, entry.text(name), answers, kind, group)
    if entry.is_unread(_DISTRACTING) and _is_list_of_objects(entry.values[_DISTRACTING]):
        for item in entry.children(_DISTRACTING):
            yield from make_probe(
                item, item.text("prompt"), item.answers("target"), ProbeKind.LOCALITY, "Distracting_Neighborhood"
            )


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def make_request(
    entry: Entry, prompt: str, target: str, subject: str | None, ground_truth: str | None, id: str
) -> EditRequest | None:
    """Builds a request with the cleaning rules of all readers.

    An empty prompt or target drops the record; a subject that is not in the prompt, ignoring case, is left out; one
    that differs in case takes its form in the prompt. The report counts all of this.
    """
    report = entry.report
    if not prompt or not target:
        report.dropped[f"record with an empty {'target' if prompt else 'prompt'}"] += 1
        return None
    if subject and not _occurs(prompt, subject):
        subject = _surface_form(entry, prompt, subject)
    if ground_truth == target:
        report.noted["target is already the true answer"] += 1
    return EditRequest(prompt, target, subject or None, ground_truth or None, id=id)


def _occurs(prompt: str, subject: str) -> bool:
    try:
        find_subject(prompt, subject)
    except RequestError:
        return False
    return True


def _surface_form(entry: Entry, prompt: str, subject: str) -> str | None:
    # Lower-casing can change the length of a text ("İ"), so the prompt itself is searched.
    for match in regex.finditer(regex.escape(subject), prompt, regex.IGNORECASE | regex.FULLCASE):
        if _occurs(prompt, match.group()):
            entry.report.changed["subject takes its form in the prompt"] += 1
            return str(match.group())
    entry.report.changed["subject not in the prompt left out"] += 1
    return None


def make_probe(
    entry: Entry,
    prompt: str,
    answers: tuple[tuple[str, ...], ...],
    kind: ProbeKind,
    group: str = "",
    rival: str | None = None,
) -> list[Probe]:
    """Builds a probe; one without a prompt or an answer is dropped and counted."""
    if not prompt or not answers:
        entry.report.dropped[f"{kind} probe without {'an answer' if prompt else 'a prompt'}"] += 1
        return []
    return [Probe(prompt, answers, kind, group, rival if rival not in answers[0] else None)]


def with_unique_ids(report: ReadReport) -> list[EditRecord]:
    """Returns the records of a report; repeated ids get a number appended."""
    taken: set[str] = set()
    records = []
    for record in report.records:
        name, number = record.id, 1
        while name in taken:
            number += 1
            name = f"{record.id}#{number}"
        taken.add(name)
        if name != record.id:
            report.changed["record id that another record has, numbered"] += 1
            requests = tuple(replace(one, id=name) if one.id == record.id else one for one in record.requests)
            record = replace(record, id=name, requests=requests)
        records.append(record)
    return records


def note_repeated_prompts(report: ReadReport) -> None:
    """Counts prompts shared by several requests, and those with conflicting targets."""
    targets: dict[str, list[str]] = {}
    for record in report.records:
        for request in record.requests:
            targets.setdefault(request.prompt, []).append(request.target)
    repeated = [wanted for wanted in targets.values() if len(wanted) > 1]
    if repeated:
        report.noted["prompts shared by several requests"] = len(repeated)
    if conflicting := sum(len(set(wanted)) > 1 for wanted in repeated):
        report.noted["prompts with conflicting targets"] = conflicting


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object and rejects duplicate keys.

    Raises:
        ValueError: If a key occurs twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"the field {twice[0]!r} occurs twice in one object")
    return values
