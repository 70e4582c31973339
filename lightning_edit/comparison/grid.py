"""Runs the cells of a comparison one after another, each once."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch import Trainer, seed_everything

from lightning_edit.callbacks.report import TestReport
from lightning_edit.comparison.cells import FAILURE_FILE, SEQUENCE_FOLDER, Cell, cells_of
from lightning_edit.comparison.estimate import Estimate, Size, duration
from lightning_edit.comparison.fitting import Editors, interrupts_raised
from lightning_edit.comparison.settings import Comparison, Protocol
from lightning_edit.comparison.tracking import tracked
from lightning_edit.data import EditDataModule, ReadReport, RecordSource
from lightning_edit.editors.base import Editor
from lightning_edit.editors.configured import configured_editor
from lightning_edit.errors import (
    DataFormatError,
    LightningEditError,
    NotApplicableError,
    RunInterruptedError,
    SourceNotFoundError,
)
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import load_language_model
from lightning_edit.modules.base import EditingModule
from lightning_edit.modules.evaluation_settings import SequentialSettings
from lightning_edit.modules.unedited_answers import UneditedAnswers

_LOG = logging.getLogger(__name__)


class Grid:
    """The cells of a comparison, with shared base model, unedited answers, editors and records.

    Args:
        comparison: The comparison.
        shard: See :func:`cells_of`.
        editors: See :func:`cells_of`.
        data: See :func:`cells_of`.
    """

    def __init__(
        self,
        comparison: Comparison,
        shard: tuple[int, int] = (1, 1),
        editors: Sequence[str] | None = None,
        data: Sequence[str] | None = None,
    ) -> None:
        self.comparison = comparison
        self.cells = cells_of(comparison, shard, editors, data)
        self._model: LanguageModel | None = None
        self._editors: Editors | None = None
        self._answers: UneditedAnswers | None = None
        self._judge = comparison.evaluation.wild.build_judge() if comparison.evaluation.wild is not None else None
        self._reports: dict[tuple[str, int], ReadReport] = {}

    @property
    def model(self) -> LanguageModel:
        """The base model, loaded on first use."""
        if self._model is None:
            self._model = load_language_model(**vars(self.comparison.language_model))
        return self._model

    @property
    def answers(self) -> UneditedAnswers:
        """Cached answers of the unedited base model, stored in the output folder for other processes and later runs."""
        if self._answers is None:
            self._answers = UneditedAnswers.kept_in(Path(self.comparison.output) / "unedited", self.model)
        return self._answers

    @property
    def editors(self) -> Editors:
        """The editors."""
        if self._editors is None:
            self._editors = Editors(self.comparison, self.model)
        return self._editors

    def report_of(self, cell: Cell) -> ReadReport:
        """Returns a cell's records, which are read once.

        Raises:
            LightningEditError: If they cannot be read.
        """
        limit = self.comparison.editors[cell.editor].records
        limit = self.comparison.records if limit is None else limit
        if (cell.data, limit) not in self._reports:
            self._reports[cell.data, limit] = self.comparison.source(cell.data, limit).read()
        return self._reports[cell.data, limit]

    def plan(self) -> str:
        """Describes what will be run: cells, records, probes, and the estimated time.

        Data sets that cannot be read are named; their cells fail, and the others are run.

        Raises:
            ConfigurationError: If a source of records is not configured correctly.
        """
        open_cells = [cell for cell in self.cells if cell.is_open]
        left_out = sum(bool(cell.reason or cell.ruled_out) for cell in self.cells)
        lines = [
            f"{len(self.cells)} cells: {sum(cell.is_done for cell in self.cells)} done, {left_out} skipped, "
            f"{len(open_cells)} to run"
        ]
        sizes: dict[Cell, Size] = {}
        for data in dict.fromkeys(cell.data for cell in open_cells):
            data_cells = [cell for cell in open_cells if cell.data == data]
            try:
                sizes |= {cell: self.size_of(cell) for cell in data_cells}
            except (DataFormatError, SourceNotFoundError) as error:
                lines.append(f"{data}: cannot be read, cells that will fail: {len(data_cells)} ({error})")
                continue
            size = sizes[data_cells[0]]
            lines.append(f"{data}: {size.records} records with {size.probes} probes, {len(data_cells)} cells")
        if sizes:
            lines.append(Estimate(self.comparison, self.cells).total(sizes))
        return "\n".join(lines)

    def size_of(self, cell: Cell) -> Size:
        """Returns a cell's amount of work.

        Raises:
            LightningEditError: If its records cannot be read.
        """
        return Size.of(self.report_of(cell).records, self.comparison.protocols[cell.protocol].requests_per_edit)

    def run(self) -> None:
        """Runs the cells that are not done; a failure is recorded and does not stop the others."""
        estimate, clock = Estimate(self.comparison, self.cells), _Clock()
        # Cells that were not applicable are looked at again, since data and versions may have changed.
        open_cells = [cell for cell in self.cells if not (cell.is_done or cell.reason)]
        for cell in self.cells:
            if cell.reason:
                cell.begin()
        for number, cell in enumerate(open_cells, 1):
            cell.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(cell.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _LOG.info("%s: another process is running this cell", cell.name)
                continue
            try:
                outcome = "done" if cell.is_done else self._run_or_record_failure(cell)
            finally:
                lock.release()
            if cell.is_done:
                estimate.learn(cell)
            left = clock.left(open_cells[:number], open_cells[number:], self._seconds(estimate, open_cells))
            _LOG.info("%d/%d  %s: %s; %s", number, len(open_cells), cell.name, outcome, left)
        if open_cells:
            _LOG.info("%s", self.overhead())

    def overhead(self) -> str:
        """Describes the share of the finished cells' time not spent on editing and asking."""
        known = [overhead for cell in self.cells if (overhead := cell.overhead) is not None]
        if not known:
            return "no cell is done"
        seconds, other = (sum(values) for values in zip(*known, strict=True))
        return (
            f"{len(known)} cells took {duration(seconds)}, {other / seconds:.1%} of it outside editing and evaluation"
        )

    def _seconds(self, estimate: Estimate, cells: Sequence[Cell]) -> dict[Cell, float]:
        """Estimates the seconds of the cells whose records can be read and whose editor's cost is known."""
        seconds: dict[Cell, float] = {}
        for cell in cells:
            with suppress(LightningEditError):  # running the cell raises and records it
                if (value := estimate.seconds(cell, self.size_of(cell))) is not None:
                    seconds[cell] = value
        return seconds

    def _run_or_record_failure(self, cell: Cell) -> str:
        failure = cell.folder / FAILURE_FILE
        # Called before anything can fail, so that no earlier results are taken for this cell's.
        cell.begin()
        try:
            self._check_before_fitting(cell)
            # Loading and fitting are shared by the cells of an editor, so they do not count as time of this one.
            _, _, started = self.answers, self.editors[cell.editor], time.perf_counter()
            self.run_cell(cell)
        except RunInterruptedError:
            raise
        except NotApplicableError as error:
            cell.rule_out(str(error))
            return f"not applicable ({error})"
        except Exception as error:  # the other cells are run after any error
            known = isinstance(error, LightningEditError)
            text = str(error) if known else "".join(traceback.format_exception(error))
            with replace_file(failure) as temporary:
                temporary.write_text(text, encoding="utf-8")
            return f"failed ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        seconds = time.perf_counter() - started
        cell.end(seconds)
        return f"{seconds:.0f} s"

    def _check_before_fitting(self, cell: Cell) -> None:
        """Checks whether an editor that is built from a file fits the data and the protocol."""
        path = self.comparison.editors[cell.editor].editor
        if path is not None:
            editor = configured_editor(path)
            report = usable_records(self.report_of(cell), editor)
            check_applicable(report, editor, self.comparison.protocols[cell.protocol])

    def run_cell(self, cell: Cell) -> None:
        """Runs a cell as a test run of the Trainer, which writes its report into the cell's folder.

        Raises:
            LightningEditError: If the editor or the records cannot be used.
        """
        editor, protocol = self.editors[cell.editor], self.comparison.protocols[cell.protocol]
        report = usable_records(self.report_of(cell), editor)
        check_applicable(report, editor, protocol)  # again, for editors that come from checkpoints
        evaluation = self.comparison.evaluation
        if protocol.sequential:
            folder = str(cell.folder / SEQUENCE_FOLDER)
            sequential = SequentialSettings(protocol.every, protocol.text, folder=folder)
            evaluation = replace(evaluation, sequential=sequential)
        seed_everything(self.comparison.seed, verbose=False)
        module = EditingModule(editor, self.comparison.language_model, evaluation)
        module.attach(self.model, self.answers, self._judge)
        data = EditDataModule(
            test=_Fixed(report),
            eval_batch_size=self.comparison.eval_batch_size,
            eval_requests_per_edit=protocol.requests_per_edit or len(report.records),
        )
        with tracked(cell, self.comparison) as logger:
            trainer = Trainer(
                accelerator="auto", devices=1, logger=logger or False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
                use_distributed_sampler=False, default_root_dir=cell.folder,
                callbacks=[TestReport(str(cell.folder), show=False)],
            )  # fmt: skip
            with interrupts_raised(trainer):
                trainer.test(module, data, verbose=False)


def check_applicable(report: ReadReport, editor: Editor, protocol: Protocol) -> None:
    """Refuses a protocol that the editor does not support.

    Raises:
        NotApplicableError: If it edits one request at a time, or cannot edit on top of other edits.
    """
    name, can = type(editor).__name__, editor.capabilities
    if protocol.sequential and not can.sequential:
        raise NotApplicableError(f"{name} cannot edit on top of earlier edits")
    most = max((len(record.requests) for record in report.records), default=0)
    if not can.joint and (protocol.requests_per_edit != 1 or most > 1):
        what = "the protocol edits records jointly" if most <= 1 else f"a record of {report.origin} has {most} requests"
        raise NotApplicableError(f"{name} edits one request at a time, and {what}")


def usable_records(report: ReadReport, editor: Editor) -> ReadReport:
    """Drops and counts the records without a subject, if the editor needs one.

    Raises:
        NotApplicableError: If no record is left.
    """
    if not editor.capabilities.needs_subject:
        return report
    kept = [record for record in report.records if all(request.subject for request in record.requests)]
    if not kept:
        raise NotApplicableError(f"{type(editor).__name__} needs subjects, and no record of {report.origin} has one")
    dropped = report.dropped.copy()
    if len(kept) < len(report.records):
        dropped[f"record without a subject, which {type(editor).__name__} needs"] = len(report.records) - len(kept)
    return replace(report, records=kept, dropped=dropped)


class _Fixed(RecordSource):
    """Record source that returns records already in memory."""

    def __init__(self, report: ReadReport) -> None:
        self._report = report

    def read(self) -> ReadReport:
        return self._report


class _Clock:
    """Estimates the time left, from the actual and estimated times of the cells that were run."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def left(self, done: Sequence[Cell], ahead: Sequence[Cell], seconds: Mapping[Cell, float]) -> str:
        """Formats the estimated time left.

        Args:
            done: Cells that were run.
            ahead: Cells still to be run.
            seconds: Estimated seconds of cells; the others count as the mean of these.
        """
        if not ahead:
            return "all cells were run"
        mean = sum(seconds.values()) / len(seconds) if seconds else 1.0
        estimated, coming = (sum(seconds.get(cell, mean) for cell in cells) for cells in (done, ahead))
        spent = time.perf_counter() - self._started
        return f"about {duration(coming * spent / max(estimated, 1e-9))} left"
