"""Trains hypernetwork editors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit import ranges
from lightning_edit.data.batches import TrainingBatch
from lightning_edit.distributed import mean_over_processes
from lightning_edit.editors.factor_cache import FactorCache
from lightning_edit.editors.hypernetwork import HypernetworkEditor, Proposal
from lightning_edit.edits import StackedDelta
from lightning_edit.edits.hooks import added_terms
from lightning_edit.errors import NonFiniteError
from lightning_edit.functional.losses import mean_by_row
from lightning_edit.functional.surrogate import surrogate_loss
from lightning_edit.metrics.base import Average
from lightning_edit.models.head import losses_and_divergences
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.optimization import HypernetworkOptimization
from lightning_edit.modules.trained import TrainedEditing, TrunkSettings
from lightning_edit.tokenization import PromptEncoder, TokenBatch

_WHITENING_TEXTS = 1024
"""Number of training texts for fitting the whitening; their answer positions outnumber the directions kept."""


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


class HypernetworkEditing(TrainedEditing):
    """Trains an editor that maps gradient factors to edits (MEND, MALMEN).

    The graph is cut at the factors of the edit: the base model's backward pass gives the gradient with respect to them,
    and a surrogate loss propagates it into the hypernetwork. Lightning's automatic optimisation, clipping, accumulation
    and precision therefore work as usual. The Trainer needs ``inference_mode=False``.

    Args:
        editor: A hypernetwork editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation while fitting.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes.
        optimization: How it is trained.
        trunk: Caching of the hidden states below the lowest block that training changes.
        factor_gigabytes: Size of the in-memory cache of gradient factors. They depend only on the unedited model, and
            are computed once per training request instead of in every epoch. 0 caches none.
        log_sites: Whether norms and step sizes of each edit site are logged.
    """

    optimization: HypernetworkOptimization

    def __init__(
        self,
        editor: HypernetworkEditor,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate_records=8),
        average: Average = "probe",
        metrics: Sequence[Metric] = (),
        optimization: HypernetworkOptimization = HypernetworkOptimization(),
        trunk: TrunkSettings = TrunkSettings(),
        factor_gigabytes: float = 0.0,
        log_sites: bool = True,
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average, metrics, optimization, trunk)
        ranges.at_least(0, "model", factor_gigabytes=factor_gigabytes)
        self.log_sites = log_sites
        self._factors = FactorCache(int(factor_gigabytes * 2**30))

    @property
    def hypernetwork(self) -> HypernetworkEditor:
        """The editor whose networks are trained."""
        return cast(HypernetworkEditor, self.editor)

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of training texts: that of the editor's requests."""
        return self.hypernetwork.encoder(self.language_model)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Runs one training step on B independent edits.

        Returns:
            A scalar with the value and the gradient of edit_weight · L_e + locality_weight · L_loc, each averaged over
            its texts.

        Raises:
            NonFiniteError: If a loss or gradient is not finite; the message names the record and the site.
        """
        return self.outer_loss(batch)

    def outer_loss(self, batch: TrainingBatch, locality_shares: Tensor | None = None) -> Tensor:
        """Edits a batch, and computes and logs the outer loss; see :meth:`training_step`.

        Args:
            batch: The batch.
            locality_shares: (locality prompts) weights of the divergences, from 0 to 1; all 1 by default.
        """
        model, trunk, editor = self.language_model, self.trunk(), self.hypernetwork
        store = editor.collect(model, batch.edit, batch.edit_of_request, batch.names, trunk, self._factors)
        editor.learn_statistics(store)
        proposal = editor.propose(store)
        weights = self.optimization.edit_weight, self.optimization.locality_weight
        outer = outer_gradients(model, batch, proposal, trunk, *weights, locality_shares)
        self._check_finite(batch, proposal, outer)
        self._log_step(batch, proposal, outer)
        return surrogate_loss(outer.objective, proposal.carry(outer.gradients))

    def fill_caches(self, datamodule: Any) -> None:
        """Also fits the whitening on training texts, and computes the factors of every request."""
        super().fill_caches(datamodule)
        if self.hypernetwork.needs_whitening:
            prompts = list(datamodule.training_prompts())
            # The same texts in every process, so that all start with the same editor.
            chosen = random.Random(0).sample(prompts, min(_WHITENING_TEXTS, len(prompts)))
            texts = [self.encoder.encode(*text) for text in chosen]
            self.hypernetwork.fit_whitening(self.language_model, texts, self.trunk())
        if self._factors.limit:
            editor, model = self.hypernetwork, self.language_model
            texts = [
                self.encoder.encode(request.prompt, request.target)
                for record in datamodule.records("fit")
                for request in record.requests
            ]
            self._factors.fill(model, texts, editor.edit_sites(model), self.trunk(), editor.tokens == "answer")

    def lowest_layer(self) -> int:
        """Returns the block of the lowest edit site."""
        return self.hypernetwork.lowest_layer(self.language_model)

    def _check_finite(self, batch: TrainingBatch, proposal: Proposal, outer: OuterResult) -> None:
        losses = torch.cat([outer.edit, outer.locality])
        if not bool(losses.isfinite().all()):
            row = int((~losses.isfinite()).nonzero()[0, 0])
            what = "a rephrase" if row < batch.rephrases else "a locality prompt"
            edit = int(batch.edit_of_outer[row])
            raise NonFiniteError(f"the loss on {what} after the edit of {self._name(batch, edit)!r} is not finite")
        for index, gradient in enumerate(outer.gradients):
            if not bool(gradient.isfinite().all()):
                edit = int((~gradient.isfinite()).flatten(1).any(1).nonzero()[0, 0])
                site = proposal.site_of_leaf(index)
                raise NonFiniteError(f"the outer gradient of {self._name(batch, edit)!r} at {site} is not finite")

    @staticmethod
    def _name(batch: TrainingBatch, edit: int) -> str:
        return batch.names[int((batch.edit_of_request == edit).nonzero()[0, 0])]

    def _log_step(self, batch: TrainingBatch, proposal: Proposal, outer: OuterResult) -> None:
        values: dict[str, Tensor | float] = {
            "loss": outer.objective,
            "edit_loss": outer.edit.mean(),
            "locality_loss": outer.locality.mean() if len(outer.locality) else 0.0,
        }
        if self.log_sites:
            for site, changes in proposal.stacked.items():
                values[f"update_norm/{site}"] = changes.detach().norms().mean()
            for site, size in self.hypernetwork.step_sizes.items():
                values[f"step_size/{site.replace('/', '.')}"] = size.detach()
            values |= proposal.measures
        self.log_step(values, batch.edits, ("loss", "edit_loss", "locality_loss"))

    def configure_optimizers(self) -> Any:
        """Configures Adam, with a separate learning rate for the step sizes."""
        return self.scheduled(torch.optim.Adam(self.parameter_groups()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the trained parameters, with their learning rates."""
        parameters = dict(self.hypernetwork.named_parameters())
        sizes = [value for name, value in parameters.items() if name.startswith("step_sizes")]
        networks = [value for name, value in parameters.items() if not name.startswith("step_sizes")]
        return [
            {"params": networks, "lr": self.optimization.learning_rate, "name": "networks"},
            {"params": sizes, "lr": self.optimization.step_size_learning_rate, "name": "step_sizes"},
        ]
