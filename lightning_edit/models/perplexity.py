"""Perplexity of a language model on plain text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_edit.models.head import token_losses
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.tokenization import TokenBatch


def perplexity(losses: Callable[[Tensor], Tensor], rows: Tensor, rows_per_pass: int = 8) -> float:
    """Computes exp(-1/N Σ log p(x_t | x_<t)) over packed rows, without the first token of each row.

    Args:
        losses: Computes the losses of some rows, such as :func:`losses_of_rows` of a model.
        rows: (R, L) token ids.
        rows_per_pass: Rows in one forward pass.

    Returns:
        The perplexity; infinite or NaN if the model's predictions are.
    """
    total, count = 0.0, 0
    for part in rows.split(rows_per_pass):
        values = losses(part)
        total, count = total + float(values.double().sum()), count + len(values)
    try:
        return math.exp(total / max(count, 1))
    except OverflowError:
        return math.inf


@torch.no_grad()
def losses_of_rows(model: LanguageModel, rows: Tensor) -> Tensor:
    """Computes the (R · (L - 1)) negative log-likelihoods in nats of packed rows (R, L), without first tokens."""
    batch = _as_batch(rows.long().to(model.device))
    return token_losses(model, model.head_inputs(batch, batch.answer_mask), batch.target_ids)


def _as_batch(ids: Tensor) -> TokenBatch:
    """Builds a batch in which every token but a row's first is a target."""
    target = torch.ones_like(ids, dtype=torch.bool)
    target[:, 0] = False
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return TokenBatch(ids, torch.ones_like(ids), positions, target, torch.zeros_like(target))
