"""Losses at the language-model head, a few positions at a time."""

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
    """A model with a head that can be asked alone."""

    def logits_of(self, inputs: Tensor) -> Tensor:
        """(N, vocabulary) the logits of (N, hidden size) head inputs."""

    @property
    def logits_at_once(self) -> int:
        """Positions whose logits are computed in one product."""


@dataclass(frozen=True)
class Ratings:
    """What a head says about target tokens.

    Args:
        log_probs: (N) natural logarithm of each token's probability.
        predicted: (N) int64 the most probable token.
        divergences: (C) KL(before || after) in nats at the compared positions.
    """

    log_probs: Tensor
    predicted: Tensor
    divergences: Tensor


@torch.no_grad()
def rate(model: Head, inputs: Tensor, target_ids: Tensor, compared: Tensor, before: Tensor) -> Ratings:
    """Rates target tokens, a few positions at a time.

    Args:
        model: The model whose head reads the inputs.
        inputs: (N, hidden size) head inputs.
        target_ids: (N) int64 the tokens that they should predict.
        compared: (C) int64 positions that are compared with the unedited model, ascending.
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
    return Ratings(
        torch.cat(log_probs or [empty]), torch.cat(predicted or [empty.long()]), torch.cat(divergences or [empty])
    )


def token_losses(model: Head, inputs: Tensor, target_ids: Tensor) -> Tensor:
    """Negative log-likelihood of target tokens.

    Args:
        model: The model whose head reads ``inputs``.
        inputs: (N, hidden size) head inputs.
        target_ids: (N) int64 the tokens that they should predict.

    Returns:
        (N) losses in nats, differentiable once with respect to ``inputs``.
    """

    def loss(logits: Tensor, part: slice, slope: bool) -> tuple[Tensor, Tensor | None]:
        return nll_and_slope(_wide(logits), target_ids[part], slope)

    return position_losses(inputs, model.logits_of, loss, model.logits_at_once)


def losses_and_divergences(
    model: Head, inputs: Tensor, target_ids: Tensor, kept: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`token_losses` at some positions and KL(before || after) at others, in one product.

    Args:
        model: The model whose head reads the inputs.
        inputs: (N, hidden size) head inputs of the edited model where it should say something new.
        target_ids: (N) int64 the tokens that it should say.
        kept: (C, hidden size) head inputs of the edited model where it should say what it said.
        before: (C, hidden size) head inputs of the unedited model there.

    Returns:
        (N) losses and (C) divergences in nats, differentiable once with respect to ``inputs`` and ``kept``.
    """
    count = len(inputs)

    def loss(logits: Tensor, part: slice, slope: bool) -> tuple[Tensor, Tensor | None]:
        middle = min(max(count - part.start, 0), part.stop - part.start)
        first, second = logits[:middle], logits[middle:]
        own, own_slope = nll_and_slope(_wide(first), target_ids[part.start : part.start + middle], slope)
        compared = before[max(part.start - count, 0) : max(part.stop - count, 0)]
        with torch.no_grad():
            reference = _wide(model.logits_of(compared)) if len(compared) else second
        other, other_slope = kl_and_slope(reference, _wide(second), slope)
        slopes = None if own_slope is None or other_slope is None else torch.cat([own_slope, other_slope])
        return torch.cat([own, other]), slopes

    found = position_losses(torch.cat([inputs, kept]), model.logits_of, loss, model.logits_at_once)
    return found[:count], found[count:]


@dataclass(frozen=True)
class SearchLosses:
    """What a head says while a value is searched.

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
    """:func:`token_losses` at some positions and KL(now || before) at others, in one product.

    Args:
        model: The model whose head reads the inputs.
        inputs: (N, hidden size) head inputs where tokens are predicted.
        target_ids: (N) int64 those tokens.
        kept: (C, hidden size) head inputs where the predictions should stay.
        before: (C, vocabulary) the logits there before; None in the pass that they are taken from.
    """
    count = len(inputs)
    predicted, kept_logits = [target_ids[:0]], []

    def loss(logits: Tensor, part: slice, slope: bool) -> tuple[Tensor, Tensor | None]:
        middle = min(max(count - part.start, 0), part.stop - part.start)
        first, second = _wide(logits[:middle]), _wide(logits[middle:])
        predicted.append(first.argmax(-1))
        kept_logits.append(second)
        own, own_slope = nll_and_slope(first, target_ids[part.start : part.start + middle], slope)
        here = slice(max(part.start - count, 0), max(part.stop - count, 0))
        other, other_slope = reverse_kl_and_slope(second if before is None else before[here], second, slope)
        slopes = None if own_slope is None or other_slope is None else torch.cat([own_slope, other_slope])
        return torch.cat([own, other]), slopes

    found = position_losses(torch.cat([inputs, kept]), model.logits_of, loss, model.logits_at_once)
    return SearchLosses(found[:count], torch.cat(predicted), found[count:], torch.cat(kept_logits))


def _wide(logits: Tensor) -> Tensor:
    # Half-precision logits are widened; double ones are left as they are.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
