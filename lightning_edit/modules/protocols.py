"""Protocols of evaluation: in which order records are edited, on top of what, and when they are evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from lightning_edit.editors.base import Editor
from lightning_edit.edits import EditBatch
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.modules.costs import Costs
from lightning_edit.modules.evaluation import Evaluator
from lightning_edit.records import EditOutcome, EditRecord, EditRequest

Group = Sequence[EditRecord]
"""Records that are edited jointly."""


class EvaluationProtocol(ABC):
    """Base of the protocols: checks, edits and evaluates the records of a stage.

    Args:
        model: The base model.
        editor: The editor.
        evaluator: Evaluates the probes.
        groups: All records of the stage; those of a group are edited jointly.
        costs: Accumulates seconds and sizes.

    Attributes:
        left_out: Why requests were left out so far.
    """

    keeps_order = False
    """Whether groups have to be edited in their order, one at a time."""

    def __init__(
        self, model: LanguageModel, editor: Editor, evaluator: Evaluator, groups: Sequence[Group], costs: Costs
    ) -> None:
        self.model, self.editor, self.evaluator, self.costs = model, editor, evaluator, costs
        self.groups = [list(group) for group in groups]
        self.left_out: list[str] = []

    @property
    @abstractmethod
    def description(self) -> str:
        """How records are edited, in a few words."""

    @property
    def stopped_after(self) -> int | None:
        """Number of edited records after which the protocol stopped early; None if it did not."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Checks the requests before the first record is edited; later calls do nothing.

        Raises:
            EditError: If the editor does not support the requests.
            TokenizationError: If a request does not survive the tokenizer, or exceeds the model's positions.
        """

    @abstractmethod
    def step(self, groups: Sequence[Group]) -> list[EditOutcome]:
        """Edits the next groups, and returns the outcomes that are final."""

    def new_measures(self) -> list[dict[str, Any]]:
        """Returns what was measured along the way since the last call."""
        return []

    def close(self) -> None:  # noqa: B027 - nothing to release by default
        """Releases files for other runs."""

    def record_edit(self, edits: int, reused_seconds: float, nbytes: int) -> None:
        """Adds finished edits to the costs.

        Args:
            edits: Their number.
            reused_seconds: The editor's total of reused seconds before them.
            nbytes: Size of one of them.
        """
        self.costs.reused_seconds += self.editor.reused_seconds - reused_seconds
        self.costs.edits += edits
        self.costs.edit_bytes = max(self.costs.edit_bytes, nbytes)


class IndependentProtocol(EvaluationProtocol):
    """Edits each group of records on the clean model, many at a time.

    Args:
        model: The base model.
        editor: The editor.
        evaluator: Evaluates the probes.
        groups: All records of the stage; those of a group are edited jointly.
        costs: Accumulates seconds and sizes.
        check_all: Whether all requests are checked before the first edit; otherwise, as in runs that stop early, each
            when it is reached.
    """

    def __init__(
        self,
        model: LanguageModel,
        editor: Editor,
        evaluator: Evaluator,
        groups: Sequence[Group],
        costs: Costs,
        check_all: bool = True,
    ) -> None:
        super().__init__(model, editor, evaluator, groups, costs)
        self._check_all, self._checked = check_all, False

    @property
    def description(self) -> str:
        """See :attr:`EvaluationProtocol.description`."""
        return "each edited on the clean model"

    def check(self) -> None:
        """See :meth:`EvaluationProtocol.check`."""
        if self._check_all and not self._checked and self.groups:
            self.editor.check(self.model, [requests_of(group) for group in self.groups])
            self._checked = True

    def step(self, groups: Sequence[Group]) -> list[EditOutcome]:
        """See :meth:`EvaluationProtocol.step`; evaluates the groups after their edits."""
        requests = [requests_of(group) for group in groups]
        records = [record for group in groups for record in group]
        if not self._checked:
            # Before asking the unedited model, which takes long.
            self.editor.check(self.model, requests)
        with ExitStack() as stack:
            with self.costs.timed("unedited"):
                stack.enter_context(self.evaluator.prepared(self.editor, records))
            memory, passes = self.evaluator.settings.change_bytes, self.evaluator.passes
            parts = self.editor.edit_in_parts(self.model, requests, memory, passes)
            outcomes: list[EditOutcome] = []
            while (part := self._next_part(parts)) is not None:
                places, edits = part
                outcomes += self._evaluate(groups[places], edits)
            self.costs.probes += len(outcomes)
            return outcomes

    def _next_part(self, parts: Iterator[tuple[slice, EditBatch]]) -> tuple[slice, EditBatch] | None:
        reused = self.editor.reused_seconds
        with self.costs.timed("editing"):
            part = next(parts, None)
        if part is not None:
            self.record_edit(len(part[1]), reused, part[1][0].nbytes)
        return part

    def _evaluate(self, groups: Sequence[Group], edits: EditBatch) -> list[EditOutcome]:
        self.left_out += [note for provenance in edits.provenances for note in provenance.notes]
        records = [record for group in groups for record in group]
        edit_of_record = [index for index, group in enumerate(groups) for _ in group]
        with self.costs.timed_asking(self.evaluator):
            return self.evaluator.evaluate(records, edits, edit_of_record)


class JointProtocol(IndependentProtocol):
    """Edits several records jointly, each group on the clean model."""

    @property
    def description(self) -> str:
        """See :attr:`EvaluationProtocol.description`."""
        return f"edited jointly, {max(map(len, self.groups), default=0)} at a time, on the clean model"


def requests_of(group: Group) -> list[EditRequest]:
    """Returns the requests of records that are edited jointly."""
    return [request for record in group for request in record.requests]
