"""Losses at single positions, computed without holding all logits in memory at once.

Each position has as many logits as the vocabulary has tokens. Each function returns a loss and, on request, its
gradient with respect to the logits, with as few arrays of that size as possible; :func:`position_losses` joins them to
the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

LogitsLoss = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]
"""Maps logits (n, V), their slice of the positions, and whether the slope is wanted to n losses and ∂l/∂logits."""


def nll_and_slope(logits: Tensor, target_ids: Tensor, slope: bool) -> tuple[Tensor, Tensor | None]:
    """Computes the negative log-likelihood -log p(t) of tokens, and its gradient p - e_t.

    Args:
        logits: (n, V) logits.
        target_ids: (n) int64 the tokens t.
        slope: Whether the gradient is wanted.

    Returns:
        (n) losses in nats, and the (n, V) gradient or None.
    """
    log_p = logits.log_softmax(-1)
    chosen = target_ids[:, None]
    losses = -log_p.gather(-1, chosen)[:, 0]
    if not slope:
        return losses, None
    p = log_p.exp_()
    return losses, p.scatter_add_(-1, chosen, p.new_full((1, 1), -1.0).expand_as(chosen))


def kl_and_slope(before: Tensor, after: Tensor, slope: bool) -> tuple[Tensor, Tensor | None]:
    """KL(p || q) with p = softmax(before) and q = softmax(after), and its gradient q - p with respect to ``after``.

    Args:
        before: (n, V) logits of the unedited model.
        after: (n, V) logits of the edited model.
        slope: Whether the gradient is wanted.

    Returns:
        (n) divergences in nats, and the (n, V) gradient or None.
    """
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    p = log_p.exp()
    # Matrix products sum over the vocabulary without an array of products.
    losses = torch.bmm(p[:, None], log_p.sub_(log_q)[:, :, None])[:, 0, 0]
    return losses, log_q.exp_().sub_(p) if slope else None


def reverse_kl_and_slope(before: Tensor, after: Tensor, slope: bool) -> tuple[Tensor, Tensor | None]:
    """Computes KL(q || p), with p and q as in :func:`kl_and_slope`, and its gradient q (log q - log p - KL).

    Arguments, shapes and units are those of :func:`kl_and_slope`.
    """
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    q, ratio = log_q.exp(), log_q.sub_(log_p)
    losses = torch.bmm(q[:, None], ratio[:, :, None])[:, 0, 0]
    return losses, ratio.sub_(losses[:, None]).mul_(q) if slope else None


def even_slices(count: int, limit: int) -> Iterator[slice]:
    """Yields even slices of at most ``limit`` positions, as a product of few rows takes as long as one of many."""
    number = -(-count // limit)
    for index in range(number):
        yield slice(count * index // number, count * (index + 1) // number)


def position_losses(inputs: Tensor, logits_of: Callable[[Tensor], Tensor], loss: LogitsLoss, at_once: int) -> Tensor:
    """Computes losses l_n = f_n(logits(h_n)), each from the head input of one position.

    With gradients enabled, ∂l_n/∂h_n is computed with each loss and kept instead of the logits: the backward pass is a
    product of (N) and (N, H).

    Args:
        inputs: (N, H) head inputs.
        logits_of: (n, H) head inputs to (n, V) logits.
        loss: f.
        at_once: Number of positions whose logits are computed at once.

    Returns:
        (N) losses, differentiable once with respect to ``inputs``.
    """
    wanted = inputs.requires_grad and torch.is_grad_enabled()
    # torch gives the apply of a Function no types.
    losses: Tensor = _PositionLosses.apply(inputs, logits_of, loss, at_once, wanted)  # type: ignore[no-untyped-call]
    return losses


class _PositionLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        loss: LogitsLoss,
        at_once: int,
        wanted: bool,
    ) -> Tensor:
        losses, slopes = [inputs.new_zeros(0)], [inputs[:0]]
        for part in even_slices(len(inputs), at_once):
            with torch.set_grad_enabled(wanted):
                leaf = inputs[part].detach().requires_grad_(wanted)
                logits = logits_of(leaf)
            values, slope = loss(logits.detach(), part, wanted)
            if slope is not None:
                slopes += torch.autograd.grad(logits, leaf, slope.to(logits))
            losses.append(values)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient.to(slopes)[:, None] * slopes, None, None, None, None
