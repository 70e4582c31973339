"""Gradient descent on a request's target, for many independent edits side by side."""

from __future__ import annotations

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_edit import ranges
from lightning_edit.editors.base import Groups, name_of
from lightning_edit.editors.value_search import GRADIENT_BATCH_FACTOR
from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.functional.losses import mean_by_row
from lightning_edit.models.cached_texts import CachedTexts, TextBatch
from lightning_edit.models.head import token_losses
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.tokenization import EncodedText

Scored = Literal["target", "prompt_last"]


@dataclass(frozen=True)
class TuningSettings:
    """Training settings of fine-tuning editors: steps, learning rate, batches and early stopping.

    The defaults are FT-M's; other methods have others. To change one setting of a method, write
    ``dataclasses.replace(GRACE().tuning, steps=50)``; a file or a flag changes the named setting alone.

    Args:
        steps: WholePasses over the requests of an edit.
        learning_rate: Learning rate.
        weight_decay: Adam's weight decay (an L2 term in the gradient).
        batch_size: Requests in one step; all requests of an edit if None.
        shuffle: Whether the requests of an edit are shuffled before each pass.
        scored: Which tokens are scored: the "target" under teacher forcing, or every target token at the prompt's last
            position ("prompt_last"), as in the original FT-L.
        end_token: Whether the end-of-text token is part of every target.
        skip_below: A step whose loss, including penalties, is below this is skipped.
        stop_below: An edit is finished after a pass whose mean loss, including penalties, is below this.
        seed: Seed of the shuffling.
    """

    steps: int = 25
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    batch_size: int | None = None
    shuffle: bool = False
    scored: Scored = "target"
    end_token: bool = False
    skip_below: float = 1e-2
    stop_below: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        ranges.at_least(1, "editor", steps=self.steps, batch_size=self.batch_size)
        ranges.above(0, "editor", learning_rate=self.learning_rate)
        ranges.one_of(get_args(Scored), "editor.tuning", scored=self.scored)
        ranges.at_least(0, "editor", weight_decay=self.weight_decay, skip_below=self.skip_below)


class Tuned(ABC):
    """Base class of the trainable parameters of B independent edits.

    Args:
        parameters: For each edit the tensors that are trained.
    """

    def __init__(self, parameters: Sequence[Sequence[Tensor]]) -> None:
        self.parameters = [list(tensors) for tensors in parameters]

    @abstractmethod
    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        """Returns the term to add to each site's output, by site name.

        Args:
            rows: The edits in the batch, each with the rows of its texts.
            batch: The texts.
        """

    def penalty(self, edit: int) -> Tensor | None:
        """Returns a term that is added to the loss of an edit; none by default."""
        return None

    def before_step(self, edit: int) -> None:  # noqa: B027 - nothing to do by default
        """Called between the gradient and the step of an edit."""

    def after_step(self, edit: int, epoch: int) -> None:  # noqa: B027 - nothing to do by default
        """Called after each step of an edit, also a skipped one; ``epoch`` counts passes over its texts from one."""

    def optimizer(self, parameters: Sequence[Tensor], settings: TuningSettings) -> torch.optim.Optimizer:
        """Returns the optimizer of one edit's parameters: Adam."""
        return torch.optim.Adam(list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def grouped_term(changes: Sequence[Sequence[Tensor]], rows: Sequence[tuple[int, slice]]) -> Term:
    """Returns a term x · M₁ · M₂ · … that multiplies each row by the matrices of its edit.

    Args:
        changes: For each edit its matrices.
        rows: The edits in the batch, each with its rows, in order and without gaps.
    """

    def term(x: Tensor, output: Tensor) -> Tensor:
        count = rows[-1][1].stop
        parts = []
        split = x.reshape(count, -1, x.shape[-1])
        for edit, places in rows:
            part = split[places].flatten(0, 1)
            for matrix in changes[edit]:
                part = part.to(matrix.dtype) @ matrix
            parts.append(part)
        return torch.cat(parts).reshape(*x.shape[:-1], -1)

    return term


@dataclass(frozen=True)
class TuningText:
    """A text that an edit is trained on.

    Args:
        text: The text.
        labels: Token ids that are scored: those of its target, or any number of ids at its last position where the text
            has no target.
    """

    text: EncodedText
    labels: tuple[int, ...]


def tuning_texts(model: LanguageModel, groups: Groups, settings: TuningSettings) -> list[list[TuningText]]:
    """The texts of each group of requests; see :func:`tuning_text`."""
    return [[tuning_text(model, one.prompt, one.target, settings) for one in group] for group in groups]


def tuning_text(model: LanguageModel, prompt: str, target: str, settings: TuningSettings) -> TuningText:
    """Tokenises a prompt with its target and selects the labels that the loss is computed on.

    Args:
        model: The model.
        prompt: The prompt.
        target: The target.
        settings: Which tokens are scored.

    Raises:
        ConfigurationError: If the end-of-text token is asked of a tokenizer that has none.
    """
    encoder = model.encoder.with_end_token() if settings.end_token else model.encoder
    text = encoder.encode(prompt, target)
    if settings.scored == "prompt_last":
        start = text.target[0]
        return TuningText(EncodedText(text.ids[:start], (start, start)), text.target_ids)
    return TuningText(text, text.target_ids)


def tune(
    model: LanguageModel,
    texts: Sequence[Sequence[TuningText]],
    names: Sequence[str],
    tuned: Tuned,
    layer: int,
    settings: TuningSettings,
    desc: str = "tuning",
) -> dict[int, str]:
    """Minimises -log p(labels | text), averaged over labels and then over texts, for each edit by itself.

    The model runs from ``layer`` on; what lies below is computed once for each text. Edits do not influence one
    another, except through rounding.

    Args:
        model: The model; earlier edits may be applied to it.
        texts: The texts of each edit.
        names: A name for each edit, for messages.
        tuned: Trainable parameters of all edits.
        layer: The lowest block in which something is trained.
        settings: Training settings.
        desc: Title of the progress bar.

    Returns:
        Index of each failed edit to its problem; the parameters of these edits must not be used.
    """
    run = _Tuning(model, texts, names, tuned, layer, settings)
    with tqdm(total=len(texts), desc=desc, leave=False, disable=None if len(texts) > 1 else True) as bar:
        for edits in _side_by_side(model, texts, settings):
            run.fit(edits)
            bar.update(len(edits))
    return run.problems


def _side_by_side(
    model: LanguageModel, texts: Sequence[Sequence[TuningText]], settings: TuningSettings
) -> Iterator[list[int]]:
    """Groups edits with texts of similar length into chunks that are trained in the same forward passes."""
    budget, sizes = GRADIENT_BATCH_FACTOR * model.saturation_tokens, []
    for group in texts:
        count, longest = min(len(group), settings.batch_size or len(group)), max(len(one.text.ids) for one in group)
        sizes.append((count, longest))
    chunk: list[int] = []
    rows = longest = 0
    for edit in sorted(range(len(texts)), key=lambda edit: sizes[edit][::-1]):
        count, length = sizes[edit]
        longest = max(longest, length)
        if chunk and (rows + count) * longest > budget:
            yield chunk
            chunk, rows, longest = [], 0, length
        chunk.append(edit)
        rows += count
    if chunk:
        yield chunk


class _Tuning:
    """The training of several edits."""

    def __init__(
        self,
        model: LanguageModel,
        texts: Sequence[Sequence[TuningText]],
        names: Sequence[str],
        tuned: Tuned,
        layer: int,
        settings: TuningSettings,
    ) -> None:
        self.model, self.names, self.tuned, self.settings = model, names, tuned, settings
        self.texts = CachedTexts(model, [one.text for group in texts for one in group], layer)
        self.labels = [one.labels for group in texts for one in group]
        starts = itertools.accumulate((len(group) for group in texts), initial=0)
        self.rows_of = [range(start, end) for start, end in itertools.pairwise(starts)]
        self.problems: dict[int, str] = {}

    def fit(self, edits: Sequence[int]) -> None:
        """Trains some of the edits side by side."""
        optimizers = {edit: self.tuned.optimizer(self.tuned.parameters[edit], self.settings) for edit in edits}
        schedules = {
            edit: mini_batches(rows, [self.texts.texts[row] for row in rows], self.settings)
            for edit, rows in ((edit, self.rows_of[edit]) for edit in edits)
        }
        losses: dict[int, list[float]] = {edit: [] for edit in edits}
        active = list(edits)
        while active:
            steps = {edit: next(schedules[edit]) for edit in active}
            values = self._gradients({edit: step.rows for edit, step in steps.items()})
            for edit, value in values.items():
                losses[edit] += [value] * len(steps[edit].rows)
                if not math.isfinite(value):
                    self.problems[edit] = f"the loss of {self.names[edit]!r} became {value} in pass {steps[edit].epoch}"
                elif value >= self.settings.skip_below:
                    self.tuned.before_step(edit)
                    optimizers[edit].step()
                self.tuned.after_step(edit, steps[edit].epoch)
                optimizers[edit].zero_grad()
            active = [edit for edit in active if not self._is_done(edit, steps[edit], losses[edit])]

    def _is_done(self, edit: int, step: _Step, losses: list[float]) -> bool:
        if edit in self.problems:
            return True
        if not step.ends_pass:
            return False
        mean = sum(losses) / len(losses)
        losses.clear()
        return step.epoch == self.settings.steps or mean < self.settings.stop_below

    def _gradients(self, rows: Mapping[int, Sequence[int]]) -> dict[int, float]:
        """The loss of each edit on its rows; the gradients are left in its parameters."""
        flat = [row for rows_of_edit in rows.values() for row in rows_of_edit]
        batch, slices, start = self.texts.batch(flat), [], 0
        for edit, rows_of_edit in rows.items():
            slices.append((edit, slice(start, start + len(rows_of_edit))))
            start += len(rows_of_edit)
        positions = self._positions(batch)
        with self.model.enable_grad_through():
            with added_terms(self.model, self.tuned.terms(slices, batch)):
                read = self.texts.head_inputs(batch, positions)
            each = mean_by_row(*self._token_losses(read, positions, flat), len(flat))
            losses = {edit: each[places].mean() for edit, places in slices}
            penalties = {edit: self.tuned.penalty(edit) for edit in rows}
            total = {
                edit: loss if (extra := penalties[edit]) is None else loss + extra for edit, loss in losses.items()
            }
            torch.stack(list(total.values())).sum().backward()
        return {edit: float(loss.detach()) for edit, loss in total.items()}

    def _positions(self, batch: TextBatch) -> Tensor:
        """(R, S) bool: where the head is read: before each target token, or at the end of a text without a target."""
        positions = batch.tokens.answer_mask.clone()
        bare = ~batch.tokens.target_mask.any(1)
        positions[bare, batch.tokens.attention_mask.sum(1)[bare] - 1] = True
        return positions

    def _token_losses(self, read: Tensor, positions: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(N) losses of the labels of all rows, and the row of each."""
        counts = torch.tensor([len(self.labels[row]) for row in rows], device=read.device)
        row_of_label = torch.arange(len(rows), device=read.device).repeat_interleave(counts)
        if len(read) != len(row_of_label):
            # Every label of a text is scored at its one position.
            read = read[row_of_label]
        ids = torch.tensor([id for row in rows for id in self.labels[row]], device=read.device)
        return token_losses(self.model, read, ids), row_of_label


@dataclass(frozen=True)
class _Step:
    """The rows of one step of an edit.

    Args:
        rows: Places of the texts.
        epoch: Number of the pass, from one.
        ends_pass: Whether it is the last step of the pass.
    """

    rows: list[int]
    epoch: int
    ends_pass: bool


def names_of(groups: Groups) -> list[str]:
    """Returns the name of each group for messages."""
    return [name_of(group[0]) for group in groups]


def problems_of(failed: Mapping[int, str], groups: Groups) -> dict[int, str]:
    """Maps failed edits to the indices of their requests over all groups, with the reason for each."""
    problems: dict[int, str] = {}
    place = 0
    for edit, group in enumerate(groups):
        if edit in failed:
            problems.update(dict.fromkeys(range(place, place + len(group)), failed[edit]))
        place += len(group)
    return problems


def mini_batches(rows: Sequence[int], texts: Sequence[EncodedText], settings: TuningSettings) -> Iterator[_Step]:
    """Yields the steps of all passes of an edit.

    The order of shuffled rows depends on their texts, and not on the edit's place in a batch.

    Args:
        rows: The edit's rows.
        texts: Their texts.
        settings: WholePasses, size and shuffling.
    """
    generator = random.Random(f"{settings.seed}-{[text.ids for text in texts]}")
    size = settings.batch_size or len(rows)
    for epoch in range(1, settings.steps + 1):
        order = list(rows)
        if settings.shuffle:
            generator.shuffle(order)
        for start in range(0, len(order), size):
            yield _Step(order[start : start + size], epoch, start + size >= len(order))
