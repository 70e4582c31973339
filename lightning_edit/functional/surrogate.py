"""Carries a gradient taken at cut tensors back into the graph that made them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that share the values but not the graph, and ask for a gradient."""
    return [tensor.detach().requires_grad_() for tensor in tensors]


def surrogate_loss(loss: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar with the value of ``loss`` and, for whatever made ``tensors``, its gradient.

    By the chain rule dL/dφ = Σ_i <dL/dT_i, dT_i/dφ>, so the scalar Σ_i <G_i, T_i> with constant G_i = dL/dT_i has the
    same gradient with respect to φ as L. Backward passes through the language model and through the hypernetwork are
    thereby separate, and an automatic optimiser sees one ordinary loss.

    Args:
        loss: () the loss L; only its value is used.
        tensors: The tensors T_i, with their graph.
        gradients: dL/dT_i, of the same shapes.
    """
    carried = torch.stack(
        [(tensor * gradient.detach()).sum() for tensor, gradient in zip(tensors, gradients, strict=True)]
    )
    total = carried.sum()
    return total - total.detach() + loss.detach()
