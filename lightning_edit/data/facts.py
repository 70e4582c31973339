"""Your own facts: JSON, JSON Lines or CSV with prompt and target, and optionally probes."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_edit import ranges
from lightning_edit.data.entry import Entry
from lightning_edit.data.extra_probes import EXTRA_PROBES
from lightning_edit.data.files import decode_json, read_json
from lightning_edit.data.read_report import ReadReport, note_repeated_prompts, with_unique_ids
from lightning_edit.data.reading import RecordSource
from lightning_edit.data.requests import make_probe
from lightning_edit.errors import DataFormatError, RequestError, SourceNotFoundError
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind

FIELDS = ("prompt", "target", "subject", "ground_truth", "subject_start", "id", "rephrases", "portability", "locality")
"""The fields of a fact; see docs/facts.schema.json."""
_OTHER_NAMES = {
    "target_new": "target",
    "rephrase": "rephrases",
    "rephrase_prompt": "rephrases",
    "paraphrase_prompts": "rephrases",
    "case_id": "id",
}
"""Field names of other toolkits."""
_ANSWERS = {field for _, field, _ in EXTRA_PROBES.values()} - {""}


class Facts(RecordSource):
    """Edits and probes of your own, from one file.

    Each fact has ``prompt`` and ``target``; optionally ``subject``, ``ground_truth`` (the answer before the edit),
    ``subject_start``, ``id``, ``rephrases`` (texts), and ``portability`` and ``locality``: lists of {prompt, answer},
    or an object of such lists by group. An answer is a text, a list of aliases, or a list of such lists. The schema is
    docs/facts.schema.json. A .json file holds a list of facts; a .jsonl file one fact per line; a .csv file a header
    and one fact per row, with lists and objects as JSON.

    EasyEdit's flat fields are read as well: case_id, target_new, rephrase_prompt, locality_prompt with
    locality_ground_truth, portability_prompt with portability_ground_truth, ood_rephrase. Of a list of ground truths,
    the first is taken.

    Edge cases: an unknown field is an error that suggests the nearest name; an unusable request is an error; an empty
    cell of a .csv file counts as missing; a repeated id gets a number (counted).

    Args:
        source: Path of the file.
        limit: Read at most this many facts.
    """

    def __init__(self, source: str, limit: int | None = None) -> None:
        ranges.at_least(1, type(self).__name__, limit=limit)
        self.source, self.limit = str(source), limit

    def read(self) -> ReadReport:
        """Reads the records.

        Raises:
            DataFormatError: If the file is broken, with the file, the record and the field.
            SourceNotFoundError: If there is no such file.
        """
        path = Path(self.source).expanduser()
        if not path.is_file():
            raise SourceNotFoundError(f"{path}: no such file; pass a .json, .jsonl or .csv file with prompt and target")
        report = ReadReport(origin=str(path))
        for number, values in _entries(path):
            if len(report.records) == self.limit:
                break
            entry = Entry(values, path, number, report)
            _refuse_unknown(entry)
            try:
                report.records.append(_record(entry, str(len(report.records))))
            except RequestError as error:
                raise DataFormatError(str(error), path, number) from error
        report.records = with_unique_ids(report)
        if not report.records:
            raise DataFormatError("no fact; each is an object with prompt and target", path)
        note_repeated_prompts(report)
        return report


def read_requests(path: str | Path) -> list[EditRequest]:
    """Reads the edit requests of a file of facts; see :class:`Facts`.

    Raises:
        DataFormatError: If a fact is not usable, with its number.
        SourceNotFoundError: If there is no such file.
    """
    return [request for record in Facts(str(path)).read().records for request in record.requests]


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the facts of a file with their numbers."""
    if path.suffix == ".csv":
        yield from _rows(path)
    elif path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise DataFormatError("expected a list of facts at the top", path)
        yield from enumerate(content)
    else:
        # Bytes, because splitting text at lines would also split at Unicode separators inside JSON.
        for number, line in enumerate(path.read_bytes().split(b"\n")):
            if line.strip():
                yield number, decode_json(line, path, number)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFormatError(f"not valid UTF-8 at byte {error.start}; save the file as UTF-8", path) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise DataFormatError(f"the column {twice[0]!r} occurs twice", path)
        for number, row in enumerate(reader):
            if None in row or None in row.values():
                raise DataFormatError(f"expected {len(reader.fieldnames or ())} cells, as in the header", path, number)
            yield number, {name: _cell(name, value, path, number) for name, value in row.items() if value.strip()}
    except csv.Error as error:
        raise DataFormatError(f"not a CSV file ({error})", path) from error


def _cell(name: str, value: str, path: Path, number: int) -> Any:
    """Parses a cell: JSON where lists or objects are allowed, else text."""
    if name == "subject_start":
        return int(value) if value.strip().isdigit() else value
    if value.lstrip().startswith(("[", "{")) and _OTHER_NAMES.get(name, name) not in ("prompt", "target", "subject"):
        try:
            return decode_json(value.encode(), path, number)
        except DataFormatError as error:
            raise DataFormatError(f"starts like JSON, but is not ({error.problem})", path, number, name) from error
    return value


def _refuse_unknown(entry: Entry) -> None:
    known = [*FIELDS, *_OTHER_NAMES, *EXTRA_PROBES, *sorted(_ANSWERS)]
    for name in entry.values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"a fact has {', '.join(FIELDS)}"
            raise entry.error(name, f"unknown field; {hint}")
    names = [_OTHER_NAMES.get(name, name) for name in entry.values]
    for name in names:
        if names.count(name) > 1:
            given = [field for field in entry.values if _OTHER_NAMES.get(field, field) == name]
            raise entry.error(given[-1], f"{' and '.join(given)} are names of the same field; keep one of them")
    entry.values = dict(zip(names, entry.values.values(), strict=True))


def _record(entry: Entry, default_id: str) -> EditRecord:
    optional = {"subject": entry.text("subject")} if "subject" in entry else {}
    if "ground_truth" in entry:
        optional["ground_truth"] = _first_text(entry, "ground_truth")
    start = entry.number("subject_start") if "subject_start" in entry else None
    name = _id(entry) if "id" in entry else default_id
    target = entry.text("target")
    request = EditRequest(entry.text("prompt"), target, **optional, subject_start=start, id=name)
    rival = request.ground_truth
    probes: list[Probe] = []
    for prompt in _texts(entry, "rephrases"):
        probes += make_probe(entry, prompt, ((target,),), ProbeKind.GENERALIZATION, rival=rival)
    for kind in (ProbeKind.PORTABILITY, ProbeKind.LOCALITY):
        probes += _grouped(entry, kind)
    for field, (kind, answer, group) in EXTRA_PROBES.items():
        if field in entry:
            answers = entry.answers(answer) if answer else ((target,),)
            probes += make_probe(entry, entry.text(field), answers, kind, group)
    return EditRecord(name, (request,), tuple(probes))


def _id(entry: Entry) -> str:
    """Returns the id, which may be a number."""
    is_number = isinstance(entry.values["id"], int) and not isinstance(entry.values["id"], bool)
    return str(entry.number("id")) if is_number else entry.text("id")


def _first_text(entry: Entry, name: str) -> str:
    """Returns a text, or the first of a list of texts."""
    if not isinstance(entry.values[name], list):
        return entry.text(name)
    texts = entry.texts(name)
    if not texts:
        raise entry.error(name, "an empty list; give a text, or leave the field out")
    return texts[0]


def _texts(entry: Entry, name: str) -> list[str]:
    if name not in entry:
        return []
    return [entry.text(name)] if isinstance(entry.values[name], str) else entry.texts(name)


def _grouped(entry: Entry, kind: ProbeKind) -> Iterator[Probe]:
    """Yields the probes of a list, or of an object of lists by group."""
    name = str(kind)
    if name not in entry:
        return
    if isinstance(entry.values[name], dict):
        groups = entry.child(name)
        for group in groups.values:
            for item in groups.children(group):
                yield from _probe(item, kind, group)
    else:
        for item in entry.children(name):
            yield from _probe(item, kind, item.text("group") if "group" in item else "")


def _probe(item: Entry, kind: ProbeKind, group: str) -> list[Probe]:
    answer = "ground_truth" if "ground_truth" in item else "answer"
    probes = make_probe(item, item.text("prompt"), item.answers(answer), kind, group)
    for unknown in sorted(set(item.values) - {"prompt", "answer", "ground_truth", "group"}):
        raise item.error(unknown, "unknown field; a probe has prompt, answer and, in a list, group")
    return probes


def facts_schema() -> dict[str, Any]:
    """Returns the JSON schema of a fact; :class:`Facts` also reads field names of other toolkits."""
    answer = {
        "oneOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "description": "aliases of one object"},
            {"type": "array", "items": {"type": "array", "items": {"type": "string"}}, "description": "objects"},
        ]
    }
    probe = {
        "type": "object",
        "properties": {"prompt": {"type": "string"}, "answer": answer, "group": {"type": "string"}},
        "required": ["prompt", "answer"],
        "additionalProperties": False,
    }
    probes = {
        "oneOf": [
            {"type": "array", "items": probe},
            {"type": "object", "additionalProperties": {"type": "array", "items": probe}, "description": "by group"},
        ]
    }
    descriptions = {
        "prompt": "What the model is given.",
        "target": "What the edited model should answer.",
        "subject": "What the fact is about, as it stands in the prompt; some editors need it.",
        "ground_truth": "The answer before the edit.",
        "id": "Name of the edit, unique in the file.",
    }
    texts = {name: {"type": "string", "description": text} for name, text in descriptions.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A fact to edit",
        "type": "object",
        "properties": {
            **texts,
            "subject_start": {"type": "integer", "description": "Character of the prompt at which the subject starts."},
            "rephrases": {"type": "array", "items": {"type": "string"}, "description": "The prompt in other words."},
            "portability": {**probes, "description": "Questions whose answers follow from the edit."},
            "locality": {**probes, "description": "Questions whose answers must stay as they are."},
        },
        "required": ["prompt", "target"],
        "additionalProperties": False,
    }
