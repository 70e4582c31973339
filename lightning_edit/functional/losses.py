"""Losses over the target tokens of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Averages values by row.

    Args:
        values: (N) values.
        rows: (N) int64 row of each.
        count: Number of rows R.

    Returns:
        (R) means; zero for a row without values.
    """
    total = values.new_zeros(count).index_add(0, rows, values)
    number = values.new_zeros(count).index_add(0, rows, torch.ones_like(values))
    return total / number.clamp(min=1)


def target_nll(logits: Tensor, target_ids: Tensor, rows: Tensor, count: int) -> Tensor:
    """Computes the mean negative log-likelihood of each row's target tokens.

    Args:
        logits: (N, V) the logits that predict the target tokens.
        target_ids: (N) int64 the target tokens.
        rows: (N) int64 row of each.
        count: Number of rows R.

    Returns:
        (R) losses in nats per token.
    """
    # Upcasts half-precision logits, and leaves double ones.
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    losses = torch.nn.functional.cross_entropy(wide, target_ids, reduction="none")
    return mean_by_row(losses, rows, count)
