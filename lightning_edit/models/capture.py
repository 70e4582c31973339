"""Captures the inputs of linear maps, and the gradients with respect to their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.functional.losses import mean_by_row
from lightning_edit.models.head import token_losses
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.tokenization import TokenBatch


@dataclass(frozen=True)
class GradientFactors:
    """The factors of one site's fine-tuning gradient: the sum over tokens of x δᵀ.

    Only N of the tokens are kept.

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
    passes: ForwardPasses | None = None,
    positions: Tensor | None = None,
) -> tuple[dict[str, GradientFactors], Tensor]:
    """Computes each site's gradient factors of the mean negative log-likelihood of each row's target.

    The rows' losses are summed, so each row's factors belong to its own loss. No parameter gets a gradient, and the
    backward pass stops at the lowest site.

    Args:
        model: The model; edits may be applied to it.
        batch: R rows, on the model's device.
        sites: The edit sites.
        passes: Forward passes with cached hidden states below the lowest site; defaults to the full model.
        positions: (R, S) bool: the tokens to return factors for; defaults to all with a gradient.

    Returns:
        Site name to factors, and the (R) losses.
    """
    with model.enable_grad_through():
        runs = [
            _run(passes or model, part, rows, sites, positions) for rows, part in batch.parts(model.saturation_tokens)
        ]
        read = torch.cat([run.read for run in runs])
        ids = torch.cat([run.batch.target_ids for run in runs])
        of_row = torch.cat([run.rows[run.batch.target_rows] for run in runs])
        losses = mean_by_row(token_losses(model, read, ids), of_row, len(batch))
        gradients = iter(torch.autograd.grad(losses.sum(), [run.outputs[site.name] for run in runs for site in sites]))
    parts = [{site.name: run.factors(site.name, next(gradients)) for site in sites} for run in runs]
    return {site.name: _joined([part[site.name] for part in parts]) for site in sites}, losses.detach()


@dataclass(frozen=True)
class _Pass:
    """One forward pass over rows of similar length.

    Args:
        batch: The rows.
        rows: (K) int64 indices of the rows.
        positions: (K, S) bool the tokens to return factors for; None for all with a gradient.
        read: (N, hidden size) head inputs at the answers' positions.
        inputs: Site name to the site's input.
        outputs: Site name to the site's output.
    """

    batch: TokenBatch
    rows: Tensor
    positions: Tensor | None
    read: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def factors(self, site: str, gradient: Tensor) -> GradientFactors:
        """Returns the factors of one site, given the gradient with respect to its output."""
        # With a device map, sites may be on different devices.
        read, gradient = self.inputs[site].to(self.rows.device), gradient.to(self.rows.device)
        chosen = _chosen_tokens(read, gradient, self.batch.input_ids.shape, self.positions)
        return GradientFactors(chosen.x, chosen.delta, self.rows[chosen.rows])


def _run(
    passes: ForwardPasses, batch: TokenBatch, rows: Tensor, sites: Sequence[EditSite], positions: Tensor | None
) -> _Pass:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    handles = [site.module.register_forward_hook(_recording(site.name, inputs, outputs)) for site in sites]
    try:
        read = passes.head_inputs(batch, batch.answer_mask)
    finally:
        for handle in handles:
            handle.remove()
    chosen = None if positions is None else positions[rows][:, : batch.input_ids.shape[1]]
    return _Pass(batch, rows, chosen, read, inputs, outputs)


def _joined(parts: Sequence[GradientFactors]) -> GradientFactors:
    columns = zip(*((part.x, part.delta, part.rows) for part in parts), strict=True)
    return GradientFactors(*(torch.cat(column) for column in columns))


def _recording(
    name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs[name] = args[0].detach()
        # The graph begins at the lowest site's output.
        recorded = output if output.requires_grad else output.detach().requires_grad_()
        outputs[name] = recorded
        # Some architectures later change a site's output in place.
        return recorded.clone()

    return hook


def _chosen_tokens(x: Tensor, gradient: Tensor, shape: torch.Size, positions: Tensor | None) -> GradientFactors:
    """Selects tokens by position, or drops those without effect on the loss: padding and tokens after the target."""
    x, gradient = x.reshape(*shape, -1), gradient.reshape(*shape, -1)
    used = (gradient != 0).any(-1) & (x != 0).any(-1) if positions is None else positions
    wide = torch.promote_types(x.dtype, torch.float32)
    return GradientFactors(x[used].to(wide), gradient[used].to(wide), used.nonzero()[:, 0])
