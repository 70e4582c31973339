"""Answers prompts in batches, each with a fixed sequence of edits."""

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
    """A generated answer.

    Args:
        text: The text after the prompt.
        edits: Ids of the edits that were applied.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the text.
        ended: Whether the model ended the text, rather than the limit.
    """

    text: str
    edits: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    ended: bool


@dataclass(frozen=True)
class _Job:
    """The prompts of one request, all answered with the same edits."""

    prompts: tuple[str, ...]
    limit: int
    result: Future[list[Completion]]


class Engine:
    """A thread that owns the model and answers queued prompts in batches.

    The edits are an immutable sequence. All answers of a batch use the sequence at the start of the batch; a change
    takes effect with the next batch.

    Args:
        model: The base model.
        edits: The initial edits.
        batch_size: Prompts answered per batch.
        waiting: Maximum number of queued requests; more are rejected.
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
        """The edits that the next batch will use."""
        return self._edits

    def submit(self, prompts: Sequence[str], limit: int) -> Future[list[Completion]]:
        """Queues prompts, which are all answered with the same edits.

        Args:
            prompts: The prompts; at least one.
            limit: Maximum answer length, in tokens.

        Raises:
            EditError: If there is no prompt, or the queue is full.
            TokenizationError: If a prompt has no tokens, or is too long for the model.
        """
        if not prompts:
            raise EditError("prompt: give at least one")
        for prompt in prompts:
            text = self.model.encoder.encode(prompt)
            if not text.ids:
                raise TokenizationError("a prompt has no tokens; give a prompt that is not empty")
            self.model.limits.check_length(text, limit)
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
            EditError: If it is already there, or depends on a missing edit.
        """
        self._change(lambda edits: edits.then(edit))

    def remove(self, id: str) -> None:
        """Removes an edit, from the next batch on.

        Raises:
            EditError: If there is no edit with that id, or a later one depends on it.
        """
        self._change(lambda edits: edits.without(id))

    def close(self) -> None:
        """Stops the thread after answering the queued prompts."""
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
            jobs, ends = self._next_batch(first)
            self._answer([job for job in jobs if job.result.set_running_or_notify_cancel()])
            if ends:
                return

    def _next_batch(self, first: _Job) -> tuple[list[_Job], bool]:
        """Returns a batch of jobs that starts with ``first``, and whether the engine is closing."""
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
                generated = scorer.generate([prompt for prompt, _ in prompts], [limit for _, limit in prompts])
            texts = iter(generated)
            for job in jobs:
                answers = [self._completion(prompt, next(texts), job.limit, edits) for prompt in job.prompts]
                job.result.set_result(answers)
        except Exception as error:  # every error must reach the waiting callers
            _LOG.exception("a batch of %d requests failed", len(jobs))
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)

    def _completion(self, prompt: str, text: str, limit: int, edits: EditSequence) -> Completion:
        # Re-tokenising may give other tokens than were generated, so the count is capped at the limit.
        used = min(len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"]), limit)
        return Completion(text, edits.ids, len(self.model.encoder.encode(prompt).ids), used, used < limit)
