"""Captures what a linear map reads, and the gradient with respect to what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.functional.losses import target_nll
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.trunk import Trunk
from lightning_edit.tokenization import TokenBatch


@dataclass(frozen=True)
class GradientFactors:
    """The factors of one site's fine-tuning gradient: the sum over tokens of x δᵀ.

    Only some tokens are kept: N of them.

    Args:
        x: (N, fan_in) float32 inputs of the site.
        delta: (N, fan_out) float32 gradient of the row's loss with respect to the site's output.
        rows: (N) int64 row of the batch that each token belongs to.
    """

    x: Tensor
    delta: Tensor
    rows: Tensor


def capture_factors(
    model: LanguageModel,
    batch: TokenBatch,
    sites: Sequence[EditSite],
    trunk: Trunk | None = None,
    positions: Tensor | None = None,
) -> tuple[dict[str, GradientFactors], Tensor]:
    """The gradient factors of every site, for the mean negative log-likelihood of each row's target.

    The rows' losses are summed, so each row's factors are those of its own loss. No parameter gets a gradient, and the
    backward pass stops at the lowest site.

    Args:
        model: The model; edits may be applied to it.
        batch: R rows, on the model's device.
        sites: The edit sites.
        trunk: Hidden states kept from below the lowest site; without it the whole model runs.
        positions: (R, S) bool: the tokens whose factors are wanted; all that have a gradient if none are given.

    Returns:
        Site name to factors, and the (R) losses.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = [site.module.register_forward_hook(_recording(site.name, inputs, outputs)) for site in sites]
    try:
        with model.enable_grad_through():
            logits = (trunk or model).answer_logits(batch)
            losses = target_nll(logits, batch.target_ids, batch.target_rows, len(batch))
            gradients = torch.autograd.grad(losses.sum(), [outputs[site.name] for site in sites])
    finally:
        for handle in handles:
            handle.remove()
    shape = batch.input_ids.shape
    found = {
        site.name: _chosen_tokens(inputs[site.name], gradient, shape, positions)
        for site, gradient in zip(sites, gradients, strict=True)
    }
    return found, losses.detach()


def _recording(
    name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs[name] = args[0].detach()
        # The lowest site's output is where the graph begins.
        recorded = output if output.requires_grad else output.detach().requires_grad_()
        outputs[name] = recorded
        return recorded

    return hook


def _chosen_tokens(x: Tensor, gradient: Tensor, shape: torch.Size, positions: Tensor | None) -> GradientFactors:
    """Without a choice, drops the tokens without influence on the loss: padding, and what follows the last target."""
    x, gradient = x.reshape(*shape, -1), gradient.reshape(*shape, -1)
    used = (gradient != 0).any(-1) & (x != 0).any(-1) if positions is None else positions
    wide = torch.promote_types(x.dtype, torch.float32)
    return GradientFactors(x[used].to(wide), gradient[used].to(wide), used.nonzero()[:, 0])
