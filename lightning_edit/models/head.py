"""Losses at the language-model head, computed a few positions at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_edit.functional.divergence import kl_divergence
from lightning_edit.functional.position_losses import (
    even_slices,
    kl_and_slope,
    nll_and_slope,
    position_losses,
    reverse_kl_and_slope,
)


class Head(Protocol):
    """A model whose head can be run separately."""

    def logits_of(self, inputs: Tensor) -> Tensor:
        """Computes logits (N, vocabulary) of head inputs (N, hidden size)."""

    @property
    def logits_at_once(self) -> int:
        """Number of positions whose logits are computed at once."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of target tokens.

    Args:
        log_probs: (N) natural logarithm of each token's probability.
        predicted: (N) int64 the most probable token.
        divergences: (C) KL(before || after) in nats at the compared positions.
    """

    log_probs: Tensor
    predicted: Tensor
    divergences: Tensor


@torch.no_grad()
def score_tokens(model: Head, inputs: Tensor, target_ids: Tensor, compared: Tensor, before: Tensor) -> TokenScores:
    """Scores target tokens, a few positions at a time.

    Args:
        model: The model whose head reads the inputs.
        inputs: (N, hidden size) head inputs.
        target_ids: (N) int64 the target tokens.
        compared: (C) int64 positions to compare with the unedited model, ascending.
        before: (C, hidden size) the unedited model's head inputs there.
    """
    log_probs, predicted, divergences = [], [], []
    for part in even_slices(len(inputs), model.logits_at_once):
        logits = _wide(model.logits_of(inputs[part]))
        log_probs.append(logits.log_softmax(-1).gather(-1, target_ids[part, None])[:, 0])
        predicted.append(logits.argmax(-1))
        here = (compared >= part.start) & (compared < part.stop)
        if here.any():
            reference = _wide(model.logits_of(before[here]))
            divergences.append(kl_divergence(reference, logits[compared[here] - part.start]))
    empty = inputs.new_zeros(0)
    return TokenScores(
        torch.cat(log_probs or [empty]), torch.cat(predicted or [empty.long()]), torch.cat(divergences or [empty])
    )


def token_losses(model: Head, inputs: Tensor, target_ids: Tensor) -> Tensor:
    """Computes the negative log-likelihood of target tokens.

    Args:
        model: The model whose head reads ``inputs``.
        inputs: (N, hidden size) head inputs.
        target_ids: (N) int64 the target tokens.

    Returns:
        (N) losses in nats, differentiable once with respect to ``inputs``.
    """

    def loss(logits: Tensor, part: slice, slope: bool) -> tuple[Tensor, Tensor | None]:
        return nll_and_slope(_wide(logits), target_ids[part], slope)

    return position_losses(inputs, model.logits_of, loss, model.logits_at_once)


def losses_and_divergences(
    model: Head, inputs: Tensor, target_ids: Tensor, kept: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes :func:`token_losses` at some positions and KL(before || after) at others, in one pass.

    Args:
        model: The model whose head reads the inputs.
        inputs: (N, hidden size) head inputs of the edited model where its output should change.
        target_ids: (N) int64 the target tokens there.
        kept: (C, hidden size) head inputs of the edited model where its output should stay.
        before: (C, hidden size) head inputs of the unedited model there.

    Returns:
        (N) losses and (C) divergences in nats, differentiable once with respect to ``inputs`` and ``kept``.
    """
    count = len(inputs)

    def loss(logits: Tensor, part: slice, slope: bool) -> tuple[Tensor, Tensor | None]:
        answers, compared = _split(part, count)
        first, second = _wide(logits).tensor_split([answers.stop - answers.start])
        with torch.no_grad():
            reference = _wide(model.logits_of(before[compared])) if len(second) else second
        return _joined(nll_and_slope(first, target_ids[answers], slope), kl_and_slope(reference, second, slope))

    values = position_losses(torch.cat([inputs, kept]), model.logits_of, loss, model.logits_at_once)
    return values[:count], values[count:]


@dataclass(frozen=True)
class SearchLosses:
    """Losses and predictions during the search for a value.

    Args:
        nll: (N) negative log-likelihood of each target token in nats, differentiable once.
        predicted: (N) int64 the most probable token there.
        divergences: (C) KL(now || before) in nats, differentiable once.
        kept_logits: (C, vocabulary) the logits at the compared positions.
    """

    nll: Tensor
    predicted: Tensor
    divergences: Tensor
    kept_logits: Tensor


def search_losses(model: Head, inputs: Tensor, target_ids: Tensor, kept: Tensor, before: Tensor | None) -> SearchLosses:
    """Computes :func:`token_losses` at some positions and KL(now || before) at others, in one pass.

    Args:
        model: The model whose head reads the inputs.
        inputs: (N, hidden size) head inputs where tokens are predicted.
        target_ids: (N) int64 those tokens.
        kept: (C, hidden size) head inputs where the predictions should stay.
        before: (C, vocabulary) the reference logits there; None in the pass that records them.
    """
    count = len(inputs)
    predicted, kept_logits = [target_ids[:0]], []

    def loss(logits: Tensor, part: slice, slope: bool) -> tuple[Tensor, Tensor | None]:
        answers, compared = _split(part, count)
        first, second = _wide(logits).tensor_split([answers.stop - answers.start])
        predicted.append(first.argmax(-1))
        kept_logits.append(second)
        reference = second if before is None else before[compared]
        return _joined(nll_and_slope(first, target_ids[answers], slope), reverse_kl_and_slope(reference, second, slope))

    values = position_losses(torch.cat([inputs, kept]), model.logits_of, loss, model.logits_at_once)
    return SearchLosses(values[:count], torch.cat(predicted), values[count:], torch.cat(kept_logits))


def _split(part: slice, count: int) -> tuple[slice, slice]:
    """Splits a slice of positions into its part of the first ``count`` and its part of the rest, relative to it."""
    answers = slice(min(part.start, count), min(part.stop, count))
    return answers, slice(max(part.start - count, 0), max(part.stop - count, 0))


def _joined(
    answers: tuple[Tensor, Tensor | None], compared: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Concatenates the losses and slopes of two sets of positions."""
    slopes = None if answers[1] is None or compared[1] is None else torch.cat([answers[1], compared[1]])
    return torch.cat([answers[0], compared[0]]), slopes


def _wide(logits: Tensor) -> Tensor:
    # Half-precision logits are widened; double ones are left as they are.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
