"""Base of the benchmark readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from lightning_edit import ranges
from lightning_edit.data.entry import Entry, json_kind
from lightning_edit.data.extra_probes import with_extra_probes
from lightning_edit.data.files import read_json, resolve_source
from lightning_edit.data.read_report import ReadReport, note_repeated_prompts, with_unique_ids
from lightning_edit.errors import ConfigurationError, DataFormatError, RequestError
from lightning_edit.records import EditRecord


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
        path = resolve_source(self.source, self.files[self.split])
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
            raise DataFormatError(f"expected a list of records at the top, found {json_kind(content)}", path)
        return [Entry(values, path, index, report) for index, values in enumerate(content[: self.limit])]

    @abstractmethod
    def parse(self, entry: Entry) -> Iterator[EditRecord] | list[EditRecord]:
        """Turns one record of the file into edit records (none if it is dropped and counted)."""
