"""Trains hypernetwork editors."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit import ranges
from lightning_edit.data.batches import TrainingBatch
from lightning_edit.editors.base import Editor
from lightning_edit.editors.factor_cache import FactorCache
from lightning_edit.editors.hypernetwork import HypernetworkEditor, Proposal
from lightning_edit.errors import NonFiniteError
from lightning_edit.functional.surrogate import surrogate_loss
from lightning_edit.metrics.base import Average
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.optimization import HypernetworkOptimization
from lightning_edit.modules.outer_losses import OuterResult, outer_gradients
from lightning_edit.modules.trained import TrainedEditing, TrunkSettings
from lightning_edit.tokenization import PromptEncoder

_WHITENING_TEXTS = 1024
"""Number of training texts for fitting the whitening; their answer positions outnumber the directions kept."""


class HypernetworkTraining(TrainedEditing):
    """Base of the modules that train a hypernetwork on the losses of the models that it edits.

    The graph is cut at the factors of the edit: the base model's backward pass gives the gradient with respect to them,
    and a surrogate loss propagates it into the hypernetwork. Lightning's automatic optimisation, clipping, accumulation
    and precision therefore work as usual. The Trainer needs ``inference_mode=False``. The arguments are those of
    :class:`HypernetworkEditing`.
    """

    optimization: HypernetworkOptimization

    def __init__(
        self,
        editor: Editor,
        language_model: LanguageModelSettings,
        evaluation: EvaluationSettings,
        validation: EvaluationSettings,
        average: Average,
        metrics: Sequence[Metric],
        optimization: HypernetworkOptimization,
        trunk: TrunkSettings,
        factor_gigabytes: float,
        log_sites: bool,
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average, metrics, optimization, trunk)
        ranges.at_least(0, "model", factor_gigabytes=factor_gigabytes)
        self.log_sites = log_sites
        self._factors = FactorCache(int(factor_gigabytes * 2**30))

    @property
    @abstractmethod
    def hypernetwork(self) -> HypernetworkEditor:
        """The editor whose networks are trained."""

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of training texts: that of the editor's requests."""
        return self.hypernetwork.encoder(self.language_model)

    def outer_loss(self, batch: TrainingBatch, locality_shares: Tensor | None = None) -> Tensor:
        """Edits a batch, and computes and logs the outer loss; see :func:`outer_gradients`.

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


class HypernetworkEditing(HypernetworkTraining):
    """Trains an editor that maps gradient factors to edits (MEND, MALMEN).

    See :class:`HypernetworkTraining` for how gradients reach the networks. The Trainer needs ``inference_mode=False``.

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

    editor: HypernetworkEditor

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
        super().__init__(
            editor,
            language_model,
            evaluation,
            validation,
            average,
            metrics,
            optimization,
            trunk,
            factor_gigabytes,
            log_sites,
        )

    @property
    def hypernetwork(self) -> HypernetworkEditor:
        """See :attr:`HypernetworkTraining.hypernetwork`."""
        return self.editor

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Runs one training step on B independent edits.

        Returns:
            A scalar with the value and the gradient of edit_weight · L_e + locality_weight · L_loc, each averaged over
            its texts.

        Raises:
            NonFiniteError: If a loss or gradient is not finite; the message names the record and the site.
        """
        return self.outer_loss(batch)
