"""Propagates a gradient at detached tensors back into the graph that made them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detaches tensors from their graph, and makes them require a gradient."""
    return [tensor.detach().requires_grad_() for tensor in tensors]


def carried(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Computes Σ_i <G_i, T_i> with constant G_i = dL/dT_i.

    By the chain rule dL/dφ = Σ_i <dL/dT_i, dT_i/dφ>, its gradient with respect to parameters φ of the tensors is that
    of L. This separates the backward passes through the language model and the hypernetwork.

    Args:
        tensors: The tensors T_i, with their graph.
        gradients: dL/dT_i, of the same shapes.
    """
    products = [(tensor * gradient.detach()).sum() for tensor, gradient in zip(tensors, gradients, strict=True)]
    return torch.stack(products).sum()


def surrogate_loss(loss: Tensor, carrier: Tensor) -> Tensor:
    """Returns a scalar with the value of ``loss`` and the gradient of ``carrier``.

    Args:
        loss: () only its value is used.
        carrier: () only its gradient is used; see :func:`carried`.
    """
    return carrier - carrier.detach() + loss.detach()
