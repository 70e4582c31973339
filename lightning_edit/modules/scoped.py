"""Trains a hypernetwork together with the scope of its edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.distributed import mean_over_processes
from lightning_edit.editors.hypernetwork import HypernetworkEditor
from lightning_edit.editors.scoped import Scoped
from lightning_edit.errors import NonFiniteError
from lightning_edit.metrics.base import Average
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.hypernetwork import HypernetworkTraining
from lightning_edit.modules.optimization import ScopedOptimization
from lightning_edit.modules.scope_training import ScopeStep, scope_parameters, scope_step
from lightning_edit.modules.trained import TrunkSettings

_LEAST_SHARE = 0.05
"""Locality prompts below this probability are not run, which saves most of a step once the scope has learned them."""


class ScopedEditing(HypernetworkTraining):
    """Trains the networks of a :class:`Scoped` editor and its scope classifier in the same steps.

    The loss is edit_weight · L_e + locality_weight · mean p(x_loc in the scope of e) L_loc + scope_weight · L_scope.
    L_e and L_loc are MEND's, with the change applied to every text, and L_scope is SERAC's. A divergence from the
    unedited model thus counts as far as the scope lets the change apply; no gradient flows into p from there. Prompts
    with p < 0.05 count as if it were 0, and are not run.

    Args:
        editor: The editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation while fitting.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes.
        optimization: How it is trained.
        trunk: Caching of the hidden states below the lowest block that training changes.
        factor_gigabytes: See :class:`HypernetworkEditing`.
        log_sites: Whether norms and step sizes of each edit site are logged.
    """

    editor: Scoped
    optimization: ScopedOptimization

    def __init__(
        self,
        editor: Scoped,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate_records=8),
        average: Average = "probe",
        metrics: Sequence[Metric] = (),
        optimization: ScopedOptimization = ScopedOptimization(),
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
        return self.editor.editor

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Runs one training step on B records; see the class.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """
        step = scope_step(self.editor.scope_classifier, batch, self.optimization.subject_examples, True)
        scope = step.loss(self.optimization.hardest_negatives)
        if not bool(scope.isfinite()):
            raise NonFiniteError(f"the scope's loss of the batch that begins with {batch.names[0]!r} is not finite")
        self.log_step(
            {"scope_loss": scope.detach(), **step.hit_rates(self.editor.threshold)}, batch.edits, ("scope_loss",)
        )
        outer = self.outer_loss(*within_scope(batch, locality_shares(batch, step)))
        return outer + self.optimization.scope_weight * scope

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :meth:`HypernetworkTraining.parameter_groups`; includes those of the scope."""
        rates = self.optimization.scope_learning_rate, self.optimization.encoder_learning_rate
        return super().parameter_groups() + scope_parameters(self.editor.scope_classifier, *rates)


@torch.no_grad()
def locality_shares(batch: TrainingBatch, step: ScopeStep) -> Tensor:
    """Computes, for each of the batch's locality prompts, the probability that it is in the scope of its own edit.

    Of several requests of an edit, the closest counts.

    Args:
        batch: The batch.
        step: The scope's probabilities in this step.
    """
    shares = []
    for row in range(batch.rephrases, len(batch.outer_texts)):
        places = (batch.edit_of_request == batch.edit_of_outer[row]).nonzero()[:, 0].to(step.log_p.device)
        shares.append(step.log_p[row, step.first + places].max().exp())
    return torch.stack(shares) if shares else step.log_p.new_zeros(0)


def within_scope(batch: TrainingBatch, shares: Tensor) -> tuple[TrainingBatch, Tensor]:
    """Leaves out the locality prompts that the scope keeps from an edit, whose divergence would hardly count.

    Args:
        batch: The batch.
        shares: (locality prompts) probabilities that they are in scope.

    Returns:
        The rest of the batch, and the shares of its locality prompts, scaled so that their mean is over all prompts.
    """
    kept = (shares >= _LEAST_SHARE).nonzero()[:, 0]
    rows = torch.cat([torch.arange(batch.rephrases, device=kept.device), batch.rephrases + kept])
    everywhere = [mean_over_processes(len(counted), shares.device) for counted in (kept, shares)]
    return batch.with_outer(rows.to(batch.edit_of_outer.device)), shares[kept] * everywhere[0] / (everywhere[1] or 1.0)
