"""Answers prompts in batches, each under one state of the edits."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from lightning_edit.edits import Edit, EditSequence
from lightning_edit.errors import EditError, EngineBusyError, TokenizationError
from lightning_edit.models.language_model import LanguageModel

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """What the model said.

    Args:
        text: The text after the prompt.
        edits: Ids of the edits that were applied.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the text.
        ended: Whether the model ended it, rather than the limit.
    """

    text: str
    edits: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    ended: bool


@dataclass(frozen=True)
class _Job:
    """The prompts of one request, which are answered under one state of the edits."""

    prompts: tuple[str, ...]
    limit: int
    result: Future[list[Completion]]


class Engine:
    """One thread that owns the model; prompts wait in a queue and are answered many at a time.

    The edits are an immutable sequence. A batch takes the sequence that is there when it begins, and every answer of it
    is given under exactly that one; a change takes effect with the next batch.

    Args:
        model: The base model.
        edits: The edits at the start.
        batch_size: Prompts that are answered side by side.
        waiting: Requests that may wait; more are refused.
    """

    def __init__(
        self, model: LanguageModel, edits: EditSequence | None = None, batch_size: int = 16, waiting: int = 1024
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self._edits = edits if edits is not None else EditSequence()
        self._check(self._edits)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="lightning-edit engine", daemon=True)
        self._thread.start()

    @property
    def edits(self) -> EditSequence:
        """The edits that the next batch will be answered under."""
        return self._edits

    def submit(self, prompts: Sequence[str], limit: int) -> Future[list[Completion]]:
        """Asks for answers, all of them under the same edits.

        Args:
            prompts: The prompts; at least one.
            limit: Longest answer, in tokens.

        Raises:
            EditError: If there is no prompt, or too many requests wait already.
            TokenizationError: If a prompt has no tokens, or is too long for the model.
        """
        if not prompts:
            raise EditError("prompt: give at least one")
        for prompt in prompts:
            text = self.model.encoder.encode(prompt)
            if not text.ids:
                raise TokenizationError("a prompt has no tokens; give a prompt that is not empty")
            self.model.check_length(text, limit)
        job = _Job(tuple(prompts), limit, Future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full as error:
            raise EngineBusyError("too many requests wait for an answer; try again later") from error
        return job.result

    def add(self, edit: Edit) -> None:
        """Adds an edit on top of the others, from the next batch on.

        Raises:
            BaseModelMismatchError: If it was made for another base model.
            EditError: If it is there already, or depends on an edit that is not.
        """
        self._change(lambda edits: edits.then(edit))

    def remove(self, id: str) -> None:
        """Takes an edit back, from the next batch on.

        Raises:
            EditError: If there is none of that id, or a later one depends on it.
        """
        self._change(lambda edits: edits.without(id))

    def close(self) -> None:
        """Ends the thread, after the prompts that wait."""
        self._jobs.put(None)
        self._thread.join()

    def _change(self, change: Callable[[EditSequence], EditSequence]) -> None:
        with self._changing:
            changed = change(self._edits)
            self._check(changed)
            self._edits = changed

    def _check(self, edits: EditSequence) -> None:
        for layer in edits.layers:
            layer.check(self.model)

    def _work(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs, ends = self._waiting_with(first)
            self._answer([job for job in jobs if job.result.set_running_or_notify_cancel()])
            if ends:
                return

    def _waiting_with(self, first: _Job) -> tuple[list[_Job], bool]:
        """A job and those that wait behind it, as many as make a batch; and whether they are the last ones."""
        jobs = [first]
        while sum(len(job.prompts) for job in jobs) < self.batch_size:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _answer(self, jobs: Sequence[_Job]) -> None:
        edits = self._edits
        prompts = [(prompt, job.limit) for job in jobs for prompt in job.prompts]
        try:
            with edits.applied(self.model) as scorer:
                said = scorer.generate([prompt for prompt, _ in prompts], [limit for _, limit in prompts])
            texts = iter(said)
            for job in jobs:
                answers = [self._completion(prompt, next(texts), job.limit, edits) for prompt in job.prompts]
                job.result.set_result(answers)
        except Exception as error:  # whatever it is, those who wait must be told
            _LOG.exception("a batch of %d requests failed", len(jobs))
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)

    def _completion(self, prompt: str, text: str, limit: int, edits: EditSequence) -> Completion:
        # Texts are read back, which may take other tokens than were generated, but never say more than the limit.
        used = min(len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"]), limit)
        return Completion(text, edits.ids, len(self.model.encoder.encode(prompt).ids), used, used < limit)
