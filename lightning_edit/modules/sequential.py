"""Sequential editing: how well earlier edits and the model itself survive later edits."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_edit.data.corpus import TextCorpus
from lightning_edit.editors.base import Editor
from lightning_edit.edits import Edit, EditSequence, load_edit
from lightning_edit.edits.base import perplexity_of
from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.files import finite_json, replace_file
from lightning_edit.metrics import edit_metrics
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.modules.costs import Costs
from lightning_edit.modules.evaluation import Evaluator
from lightning_edit.modules.evaluation_settings import SequentialSettings
from lightning_edit.modules.protocols import EvaluationProtocol, Group, requests_of
from lightning_edit.records import EditOutcome, EditRecord, group_names

SCHEDULE_FILE = "sequence.jsonl"
_LOCK_FILE = ".lock"
_SAME = 1e-3
"""Relative difference of perplexities on the same text that can come from rounding."""
_ROW = 256
"""Number of tokens per row of the perplexity text."""


class SequentialProtocol(EvaluationProtocol):
    """A sequence of edits, each on top of the earlier ones.

    Args:
        model: The base model.
        editor: The editor.
        evaluator: Asks the probes; the unedited model is asked all of them before the first edit.
        settings: How the sequence is measured.
        groups: The records, in the order of the edits; those of a group are edited jointly.
        folder: Where the measures are written.
        costs: Accumulates seconds and sizes.
        metrics: Builds an empty collection of the measures; by default the standard ones, averaged over probes.
    """

    keeps_order = True

    def __init__(
        self,
        model: LanguageModel,
        editor: Editor,
        evaluator: Evaluator,
        settings: SequentialSettings,
        groups: Sequence[Sequence[EditRecord]],
        folder: Path,
        costs: Costs | None = None,
        metrics: Callable[[], MetricCollection] | None = None,
    ) -> None:
        super().__init__(model, editor, evaluator, groups, costs if costs is not None else Costs())
        self.settings, self.folder = settings, folder
        self._lock = FileLock(folder / _LOCK_FILE)
        self.sequence = EditSequence()
        self.rows: list[dict[str, Any]] = []
        self._reported = 0
        self._reached = 0
        self.stopped = False
        if not self.groups:
            raise ConfigurationError(
                "a sequence needs at least one record, and there is none; see data.test, and the Trainer's limits"
            )
        # Before asking the unedited model, which takes long.
        editor.check(model, [requests_of(group) for group in self.groups], on_top=len(self.groups) > 1)
        if settings.folder is not None:
            self._lock_folder()
        try:
            self._prepare(metrics)
        except BaseException:
            # Nobody can close what was not built.
            self.close()
            raise

    def _prepare(self, metrics: Callable[[], MetricCollection] | None) -> None:
        """Resumes the edits, asks the unedited model and measures its perplexity."""
        settings, evaluator = self.settings, self.evaluator
        if settings.folder is not None:
            self._resume_edits()
            self.rows = self._read_measures()
        self._text = self._read_text()
        records = [record for group in self.groups for record in group]
        with self.costs.timed("unedited"):
            evaluator.ask_before(evaluator.questions(records))
        names = evaluator.settings.groups(group_names(records))
        self._new_metrics = metrics if metrics is not None else partial(edit_metrics, names)
        with self.costs.timed("perplexity"):
            self._perplexity_before = None if self._text is None else perplexity_of(self.model, self.model, self._text)
        if settings.folder is not None:
            self._resume_measures()

    @property
    def description(self) -> str:
        """See :attr:`EvaluationProtocol.description`."""
        joint = max(map(len, self.groups))
        number = f"{joint} at a time, " if joint > 1 else ""
        return f"edited one after another, {number}each edit on top of all before"

    @property
    def stopped_after(self) -> int | None:
        """See :attr:`EvaluationProtocol.stopped_after`: perplexity rose above the limit."""
        return self.edited if self.stopped else None

    def check(self) -> None:
        """See :meth:`EvaluationProtocol.check`; a sequence is checked when it is built."""

    def _lock_folder(self) -> None:
        """Locks the folder for the lifetime of this run.

        Raises:
            ConfigurationError: If another run writes to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigurationError(
                f"evaluation.sequential.folder: another run writes to {self.folder}; wait until it has ended, or name "
                "another folder"
            ) from error

    def close(self) -> None:
        """Releases the folder for other runs."""
        self._lock.release()

    def _read_text(self) -> Tensor | None:
        corpus = perplexity_text(self.settings)
        return None if corpus is None else corpus.read(self.model.tokenizer)

    def _resume_edits(self) -> None:
        """Resumes from the edits in the folder.

        Raises:
            ConfigurationError: If they belong to other requests or another editor, or are more than to be made.
        """
        if self._edit_folder(len(self.groups)).exists():
            raise ConfigurationError(
                f"{self.folder} holds a longer sequence than the {len(self.groups)} edits that are to be made; name "
                "another folder in evaluation.sequential.folder"
            )
        for number, group in enumerate(self.groups):
            place = self._edit_folder(number)
            if not place.exists():
                break
            edit = load_edit(place)
            if not self.editor.could_have_produced(edit.provenance, requests_of(group)):
                raise ConfigurationError(
                    f"{place} holds an edit of other requests, of another editor or with other statistics; name "
                    "another folder in evaluation.sequential.folder, or delete it"
                )
            self._append(edit)

    def _read_measures(self) -> list[dict[str, Any]]:
        """Reads the measures in the folder.

        Raises:
            ConfigurationError: If a line cannot be read.
        """
        path = self.folder / SCHEDULE_FILE
        return read_schedule(path) if path.exists() else []

    def _resume_measures(self) -> None:
        """Resumes from the measures of the existing edits.

        Raises:
            ConfigurationError: If they were measured on another text.
        """
        self._compare_texts()
        self.rows = [row for row in self.rows if row["edits"] <= self.edited]
        if self.rows and "perplexity" in self.rows[-1] and self._measured == self.edited:
            self._check(self.rows[-1]["perplexity"] / self.rows[-1]["perplexity_before"])

    def _compare_texts(self) -> None:
        """Refuses measures on another text, whose perplexities would not be comparable."""
        for row in self.rows:
            earlier, now = row.get("perplexity_before"), self._perplexity_before
            if not _like(earlier, now):
                raise ConfigurationError(
                    f"{self.folder / SCHEDULE_FILE} was measured on another text or in another precision: the unedited "
                    f"model's perplexity is {earlier} there and {now} on evaluation.sequential.text; use the same text "
                    "and dtype, or name another folder in evaluation.sequential.folder"
                )

    def _edit_folder(self, number: int) -> Path:
        return self.folder / f"edit-{number:05d}"

    @property
    def edited(self) -> int:
        """Number of records edited so far."""
        return sum(len(group) for group in self.groups[: len(self.sequence)])

    @property
    def is_done(self) -> bool:
        """Whether there are no more edits to make."""
        return self.stopped or len(self.sequence) == len(self.groups)

    def step(self, groups: Sequence[Group]) -> list[EditOutcome]:
        """Makes the edits of the next groups, and measures the sequence where it is due.

        Args:
            groups: The next groups in the order of the sequence; those already edited, or after the end, are skipped.

        Returns:
            The outcomes of all edited records after the last edit; an empty list before.
        """
        outcomes: list[EditOutcome] = []
        for group in groups:
            if list(group) != self.groups[self._reached]:
                raise EditError(f"records of a sequence come in its order, and {group[0].id!r} does not come next")
            outcomes += self._step(self._reached)
            self._reached += 1
        return outcomes

    def _step(self, number: int) -> list[EditOutcome]:
        if number == len(self.sequence) and not self.is_done:
            self._edit(number)
        if number != len(self.sequence) - 1:
            return []
        due = self.settings.every and self.edited // self.settings.every > self._measured // self.settings.every
        if not (due or self.is_done):
            return []
        outcomes = self._measure()
        return outcomes if self.is_done else []

    def _edit(self, number: int) -> None:
        """Makes an edit; a request that fails is left out without ending the sequence."""
        reused = self.editor.reused_seconds
        with self.costs.timed("editing"):
            requests = [requests_of(self.groups[number])]
            edit = self.editor.edit_checked_groups(self.model, requests, after=self.sequence)[0]
        self.record_edit(1, reused, edit.nbytes)
        if self.settings.folder is not None:
            edit.save(self._edit_folder(number))
        self._append(edit)

    def _append(self, edit: Edit) -> None:
        self.sequence = self.sequence.then(edit)
        self.left_out += edit.provenance.notes

    def new_measures(self) -> list[dict[str, Any]]:
        """See :meth:`EvaluationProtocol.new_measures`; the first call includes those of a resumed run."""
        rows = [row for row in self.rows if row["edits"] > self._reported]
        self._reported = self._measured
        return rows

    @property
    def _measured(self) -> int:
        return int(self.rows[-1]["edits"]) if self.rows else 0

    def _measure(self) -> list[EditOutcome]:
        records = [record for group in self.groups[: len(self.sequence)] for record in group]
        with self.sequence.applied(self.model) as scorer:
            with self.costs.timed_asking(self.evaluator):
                outcomes = self.evaluator.evaluate_under(records, scorer)
            self.costs.probes += len(outcomes)
            with self.costs.timed("perplexity"):
                now = None if self._text is None else perplexity_of(scorer, self.model, self._text)
        latest = {record.id for record in self.groups[len(self.sequence) - 1]}
        row: dict[str, Any] = {
            "edits": self.edited,
            "all": self._measures(outcomes),
            "latest": self._measures([outcome for outcome in outcomes if outcome.record_id in latest]),
            "earlier": self._measures([outcome for outcome in outcomes if outcome.record_id not in latest]),
            "relative_norm": self.sequence.relative_norms(self.model),
        }
        if now is not None and self._perplexity_before is not None:
            row |= {"perplexity": now, "perplexity_before": self._perplexity_before}
            self._check(now / self._perplexity_before)
        self.rows = [*(earlier for earlier in self.rows if earlier["edits"] < self.edited), row]
        with replace_file(self.folder / SCHEDULE_FILE) as temporary:
            lines = [json.dumps(finite_json(earlier), allow_nan=False) for earlier in self.rows]
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return outcomes

    def _check(self, ratio: float) -> None:
        limit = self.settings.stop_above
        if limit is not None and not ratio <= limit:
            self.stopped = True
            warnings.warn(
                f"the perplexity after {self.edited} edits is {ratio:.3g} times the unedited model's; the sequence "
                "ends here (evaluation.sequential.stop_above)",
                stacklevel=2,
            )

    def _measures(self, outcomes: list[EditOutcome]) -> dict[str, float]:
        metrics = self._new_metrics()
        metrics.update(outcomes)
        values = {name: float(value) for name, value in metrics.compute().items()}
        return {name: round(value, 6) for name, value in values.items() if not math.isnan(value)}


def read_schedule(path: Path) -> list[dict[str, Any]]:
    """Reads the measures along a sequence.

    Raises:
        ConfigurationError: If a line cannot be read.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def perplexity_text(settings: SequentialSettings) -> TextCorpus | None:
    """Returns the text for measuring perplexity, or None."""
    if settings.text is None:
        return None
    return TextCorpus(settings.text, tokens=settings.tokens, length=min(_ROW, settings.tokens))


def _row(line: str, place: str) -> dict[str, Any]:
    """Parses a line of the schedule."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("edits"), int):
        raise ConfigurationError(
            f"{place}: not the measures of a sequence; delete the line, whose measures are then missing, or name "
            "another folder in evaluation.sequential.folder"
        )
    return row


def _like(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=_SAME)


def flat(row: dict[str, Any]) -> dict[str, float]:
    """Flattens a row of the schedule for a logger, with slashes in the names."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            values.update({f"{name}/{inner}": number for inner, number in value.items() if number is not None})
        elif value is not None:
            values[name] = value
    return values
