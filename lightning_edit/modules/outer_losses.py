"""Losses of edited models that hypernetworks are trained on, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.distributed import mean_over_processes
from lightning_edit.editors.hypernetwork import Proposal
from lightning_edit.edits import StackedDelta
from lightning_edit.edits.hooks import added_terms
from lightning_edit.functional.losses import mean_by_row
from lightning_edit.models.head import losses_and_divergences
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.trunk import Trunk
from lightning_edit.tokenization import TokenBatch


def outer_losses(
    model: LanguageModel, batch: TrainingBatch, changes: Mapping[str, StackedDelta], trunk: Trunk
) -> tuple[Tensor, Tensor]:
    """Computes the losses of the edited model (Mitchell et al. 2022, equations 4a and 4b).

    L_e = -log p'(y_e' | x_e') per target token on each rephrase, and L_loc = KL(p(· | x_loc) || p'(· | x_loc)) per
    position on each locality prompt's answer, p being the unedited model and p' the edited one.

    Args:
        model: The base model.
        batch: The batch, on the model's device.
        changes: Changes of the batch's edits, by site name; gradients flow into them.
        trunk: Cache of the hidden states below the lowest site, and of the unedited model's head inputs.

    Returns:
        (rephrases) and (locality prompts) losses in nats.
    """
    outer = batch.outer
    inputs, ids, of_row, before = [], [], [], []
    for rows, part in outer.parts(model.saturation_tokens):
        states = trunk.states(part)
        with added_terms(model, {name: stacked.term(batch.edit_of_outer[rows]) for name, stacked in changes.items()}):
            inputs.append(trunk.head_inputs(part, part.answer_mask, states))
        ids.append(part.target_ids)
        of_row.append(rows[part.target_rows])
        before += _unedited(trunk, part, (rows >= batch.rephrases).nonzero()[:, 0], states)
    read, asked, row = torch.cat(inputs), torch.cat(ids), torch.cat(of_row)
    is_edit = row < batch.rephrases
    kept = read[~is_edit]
    reference = torch.cat([kept[:0].detach(), *before])
    losses, divergence = losses_and_divergences(model, read[is_edit], asked[is_edit], kept, reference)
    edit = mean_by_row(losses, row[is_edit], batch.rephrases)
    return edit, mean_by_row(divergence, row[~is_edit] - batch.rephrases, len(batch.locality_rows))


def _unedited(trunk: Trunk, batch: TokenBatch, rows: Tensor, states: Tensor | None) -> list[Tensor]:
    """Returns the unedited model's (N, hidden size) head inputs at the answers of some rows, if any."""
    if not len(rows):
        return []
    chosen = batch.select(rows)
    return [trunk.references(chosen, None if states is None else states[rows, : chosen.input_ids.shape[1]])]


@dataclass(frozen=True)
class OuterResult:
    """The outer losses of a step and their gradients.

    Args:
        edit: (rephrases) losses of the targets in nats per token.
        locality: (locality prompts) divergences in nats per position.
        objective: () weighted sum of their means.
        gradients: Gradient of the objective with respect to each leaf of the proposal.
    """

    edit: Tensor
    locality: Tensor
    objective: Tensor
    gradients: list[Tensor]


def outer_gradients(
    model: LanguageModel,
    batch: TrainingBatch,
    proposal: Proposal,
    trunk: Trunk,
    edit_weight: float,
    locality_weight: float,
    locality_shares: Tensor | None = None,
) -> OuterResult:
    """Computes the gradients of edit_weight · mean L_e + locality_weight · mean L_loc, in passes of limited size.

    Means are over the texts of all processes, so that averaging gradients over processes gives the gradient of the
    whole batch. With ``locality_shares`` (locality prompts), each L_loc is multiplied by its share before. The other
    arguments are those of :func:`outer_losses`.
    """
    shares = torch.ones(len(batch.locality_rows)) if locality_shares is None else locality_shares
    shares = shares.to(model.device)
    rephrases = mean_over_processes(batch.rephrases, model.device)
    # Without locality prompts in any process, their sum is zero and the divisor does not matter.
    localities = mean_over_processes(len(batch.locality_rows), model.device) or 1.0
    edit = torch.zeros(batch.rephrases, device=model.device, dtype=proposal.leaves[0].dtype)
    locality = torch.zeros(len(batch.locality_rows), device=model.device, dtype=edit.dtype)
    gradients = [torch.zeros_like(leaf) for leaf in proposal.leaves]
    for rows in batch.outer.chunks(model.tokens_per_batch):
        part = batch.with_outer(rows)
        part_edit, part_locality = outer_losses(model, part, proposal.stacked, trunk)
        of_part = rows[part.rephrases :] - batch.rephrases
        weighted = (part_locality * shares[of_part].to(part_locality)).sum()
        objective = edit_weight * part_edit.sum() / rephrases + locality_weight * weighted / localities
        for total, gradient in zip(gradients, torch.autograd.grad(objective, proposal.leaves), strict=True):
            total += gradient
        edit[rows[: part.rephrases]] = part_edit.detach().to(edit)
        locality[of_part] = part_locality.detach().to(edit)
    kept = (locality * shares.to(locality)).sum()
    total = edit_weight * edit.sum() / rephrases + locality_weight * kept / localities
    return OuterResult(edit, locality, total, gradients)
