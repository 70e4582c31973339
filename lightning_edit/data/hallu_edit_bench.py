"""HalluEditBench: questions that a model answers wrongly (Huang et al. 2024, arXiv 2410.16251)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_edit import ranges
from lightning_edit.data.entry import Entry
from lightning_edit.data.read_report import ReadReport, note_repeated_prompts, with_unique_ids
from lightning_edit.data.reading import RecordSource
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.errors import DataFormatError, RequestError, SourceNotFoundError
from lightning_edit.records import EditRecord, Probe, ProbeKind

_HOPS = range(2, 7)


class HalluEditBench(RecordSource):
    """Facts about which one model hallucinates; the edit corrects it.

    The prompt is ``question``, the target ``object``, the ground truth the model's answer. Generalization probes are
    ``paraphrased_question`` and, in separate groups, the yes, no and multiple-choice questions and the reversed
    relation; questions over two to six hops are portability probes. ``locality_question`` has no published answer, so
    it is counted and left out. All files of a folder are read, topic by topic.

    Args:
        source: A .csv file of one model, or a folder of them.
        limit: Read at most this many records.

    Raises:
        ConfigurationError: If ``limit`` is not positive.
    """

    def __init__(self, source: str, limit: int | None = None) -> None:
        ranges.at_least(1, type(self).__name__, limit=limit)
        self.source, self.limit = source, limit

    def read(self) -> ReadReport:
        """See :meth:`RecordSource.read`.

        Raises:
            SourceNotFoundError: If there is no such file.
            DataFormatError: If a file is broken, with the file, the row and the column.
        """
        path = Path(self.source).expanduser()
        files = [path] if path.is_file() else sorted(path.glob("*.csv"))
        if not files:
            raise SourceNotFoundError(f"{path}: no .csv file here; pass a topic's file, or a model's folder of them")
        report = ReadReport(origin=str(path))
        for file in files:
            for entry in _rows(file, report):
                if self.limit is not None and len(report.records) >= self.limit:
                    break
                try:
                    report.records += self._parse(entry)
                except RequestError as error:
                    raise DataFormatError(str(error), file, entry.index) from error
                entry.note_unread_fields()
        report.records = with_unique_ids(report)
        if not report.records:
            raise DataFormatError("no usable record; is it the right file?", path)
        note_repeated_prompts(report)
        return report

    def _parse(self, entry: Entry) -> list[EditRecord]:
        id = f"halluedit-{entry.text('topic')}-{entry.index}"
        question, target = entry.text("question"), entry.text("object")
        output = next((name for name in entry.values if name.startswith("output_")), None)
        truth = entry.text(output) if output is not None else None
        request = make_request(entry, question, target, entry.text("subject"), truth, id)
        if request is None:
            return []
        choices = f"{question} {entry.text('multiple_choice_with_letters')}"
        generalization = [
            (entry.text("paraphrased_question"), target, ""),
            (entry.text("yes_question"), "Yes", "Yes_Question"),
            (entry.text("no_question"), "No", "No_Question"),
            (choices, entry.text("multiple_choice_labels"), "Multiple_Choice"),
            (entry.text("reversed_relation_question"), entry.text("subject"), "Reversed_Relation"),
        ]
        probes: list[Probe] = []
        for prompt, answer, group in generalization:
            probes += make_probe(entry, prompt, _answers(answer), ProbeKind.GENERALIZATION, group)
        for hops in _HOPS:
            prompt, answer = entry.text(f"question_{hops}hop"), entry.text(f"answer_{hops}hop")
            probes += make_probe(entry, prompt, _answers(answer), ProbeKind.PORTABILITY, f"{hops}_Hops")
        if entry.text("locality_question"):
            entry.report.dropped["locality question without a published answer"] += 1
        return [EditRecord(id, (request,), tuple(probes))]


def _answers(text: str) -> tuple[tuple[str, ...], ...]:
    return ((text,),) if text else ()


def _rows(path: Path, report: ReadReport) -> Iterator[Entry]:
    try:
        rows: list[dict[Any, Any]] = list(
            csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(f"not a CSV file in UTF-8 ({error})", path) from error
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise DataFormatError("another number of columns than the first line", path, number)
        yield Entry(row, path, number, report)
