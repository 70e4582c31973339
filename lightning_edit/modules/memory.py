"""Trains editors with an explicit memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.editors.memory_based import MemoryEditor
from lightning_edit.errors import ConfigurationError, NonFiniteError
from lightning_edit.functional.losses import mean_by_row, target_nll
from lightning_edit.functional.scope import log_complement
from lightning_edit.metrics.base import Average
from lightning_edit.models.counterfactual import prepend_request
from lightning_edit.models.head import token_losses
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import LanguageModelSettings
from lightning_edit.modules.evaluation_settings import EvaluationSettings
from lightning_edit.modules.optimization import MemoryOptimization
from lightning_edit.modules.scope_training import (
    ScopeStep,
    mean_of_all_processes,
    request_for,
    scope_parameters,
    scope_step,
)
from lightning_edit.modules.trained import TrainedEditing, TrunkSettings
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import TokenBatch


class MemoryEditing(TrainedEditing):
    """Trains the scope classifier and the counterfactual model of a memory-based editor: SERAC.

    The memory of a step holds the requests of its whole batch. A rephrase is in the scope of its own request (a
    positive pair) and of no other (easy negatives); a locality prompt is in the scope of none. Hard positives ask the
    record's own question in other words; hard negatives ask another record's question about this record's subject; see
    :func:`subject_examples`.

    Args:
        editor: A memory-based editor.
        language_model: Which base model to load, and how.
        evaluation: How records are evaluated in testing and prediction.
        validation: How they are evaluated in validation while fitting.
        average: Whether measures are averaged over probes, or over records with each record's probes averaged first.
        metrics: Further metrics over all outcomes.
        optimization: What is trained, and how.
        trunk: Caching of the hidden states below the lowest block that training changes.
    """

    editor: MemoryEditor
    optimization: MemoryOptimization

    def __init__(
        self,
        editor: MemoryEditor,
        language_model: LanguageModelSettings = LanguageModelSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        validation: EvaluationSettings = EvaluationSettings(generate_records=8),
        average: Average = "probe",
        metrics: Sequence[Metric] = (),
        optimization: MemoryOptimization = MemoryOptimization(),
        trunk: TrunkSettings = TrunkSettings(),
    ) -> None:
        super().__init__(editor, language_model, evaluation, validation, average, metrics, optimization, trunk)

    def setup(self, stage: str) -> None:
        """See :meth:`EditingModule.setup`; in fit, freezes the parts that are not trained."""
        super().setup(stage)
        if stage == "fit":
            for part, trained in (
                (self.editor.scope_classifier, self.optimization.train_scope),
                (self.editor.answering_model, self.optimization.train_counterfactual),
            ):
                if not trained:
                    part.requires_grad_(False)

    def lowest_layer(self) -> int:
        """Returns the lowest adapted block."""
        return self.editor.answering_model.lowest_layer

    def fill_trunk(self, datamodule: Any) -> None:
        """Computes the hidden states of every rephrase, prefixed with its request."""
        encoder = self.encoder
        texts = [
            encoder.encode(prepend_request(request_for(record.requests, text), text[0]), text[1])
            for record, neighbourhood in datamodule.training_neighbourhoods()
            for text in neighbourhood
        ]
        self.trunk().fill(texts, folder=self.trunk_folder())

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Runs one training step on the rephrases and locality prompts of B records.

        Raises:
            NonFiniteError: If the loss is not finite.
        """
        supervised = self.optimization.objective == "supervised"
        about_subjects = self.optimization.subject_examples and supervised
        step = scope_step(self.editor.scope_classifier, batch, about_subjects, self.optimization.train_scope)
        values: dict[str, Tensor | float]
        loss, values = self._supervised(batch, step) if supervised else self._mixed(batch, step)
        if not bool(loss.isfinite()):
            raise NonFiniteError(f"the loss of the batch that begins with {batch.names[0]!r} is not finite")
        bars = ("loss", "edit_loss", "scope_loss", "locality_loss")
        self.log_step({"loss": loss.detach(), **values, **step.hit_rates(self.editor.threshold)}, batch.edits, bars)
        return loss

    def _supervised(self, batch: TrainingBatch, step: ScopeStep) -> tuple[Tensor, dict[str, Tensor | float]]:
        loss = step.log_p.new_zeros(())
        values: dict[str, Tensor | float] = {}
        if self.optimization.train_scope:
            scope = step.loss(self.optimization.hardest_negatives)
            loss = loss + self.optimization.scope_weight * scope
            values |= {"scope_loss": scope.detach()}
        if self.optimization.train_counterfactual:
            owners = [example.owner for example in step.examples[: batch.rephrases]]
            requests = [step.memory[owner] for owner in owners if owner is not None]
            edit = mean_of_all_processes(self._answer_losses(batch, requests))
            loss = loss + edit
            values |= {"edit_loss": edit.detach()}
        return loss, values

    def _mixed(self, batch: TrainingBatch, step: ScopeStep) -> tuple[Tensor, dict[str, Tensor | float]]:
        base = self.language_model
        if not self.editor.answering_model.same_tokens(base):
            raise ConfigurationError(
                "objective: mixed needs a counterfactual model with the base's own tokens; use supervised"
            )
        best, which = step.log_p.max(dim=1)
        logits, tokens = self._answer_logits(batch, [step.memory[place] for place in which.tolist()])
        with torch.no_grad():
            plain = base.answer_logits(batch.outer).log_softmax(-1)
        share = best[tokens.target_rows][:, None]
        mixed = torch.logaddexp(share + logits.log_softmax(-1), log_complement(share) + plain)
        edit = mean_of_all_processes(_nll(mixed, tokens)[: batch.rephrases])
        divergence = mean_by_row((plain.exp() * (plain - mixed)).sum(-1), tokens.target_rows, len(tokens))
        locality = mean_of_all_processes(divergence[batch.rephrases :])
        return edit + locality, {"edit_loss": edit.detach(), "locality_loss": locality.detach()}

    def _answer_losses(self, batch: TrainingBatch, requests: list[EditRequest]) -> Tensor:
        """Computes the counterfactual model's (R) loss on each rephrase, prefixed with its request."""
        base = self.language_model
        inputs, ids, of_row = [], [], []
        with self.editor.answering_model.answering(base) as other:
            tokens = _token_batch(other, batch.outer_texts, requests)
            if other is not base:
                # A separate model has no trunk, and its head is trained, too.
                return target_nll(other.answer_logits(tokens), tokens.target_ids, tokens.target_rows, len(tokens))
            for rows, part in tokens.parts(other.saturation_tokens):
                inputs.append(self.trunk().head_inputs(part, part.answer_mask))
                ids.append(part.target_ids)
                of_row.append(rows[part.target_rows])
            losses = token_losses(other, torch.cat(inputs), torch.cat(ids))
        return mean_by_row(losses, torch.cat(of_row), len(tokens))

    def _answer_logits(self, batch: TrainingBatch, requests: list[EditRequest]) -> tuple[Tensor, TokenBatch]:
        """Returns the counterfactual model's logits for all texts, each prefixed with a request, and their tokens."""
        base = self.language_model
        with self.editor.answering_model.answering(base) as other:
            tokens = _token_batch(other, batch.outer_texts, requests)
            with torch.set_grad_enabled(self.optimization.train_counterfactual):
                return (self.trunk() if other is base else other).answer_logits(tokens), tokens

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the trained parameters, with a separate learning rate for each part."""
        groups: list[dict[str, Any]] = []
        if self.optimization.train_counterfactual:
            parameters = list(self.editor.answering_model.parameters())
            groups.append({"params": parameters, "lr": self.optimization.learning_rate, "name": "counterfactual"})
        if self.optimization.train_scope:
            rates = self.optimization.scope_learning_rate, self.optimization.encoder_learning_rate
            groups += scope_parameters(self.editor.scope_classifier, *rates)
        return groups

    def configure_optimizers(self) -> Any:
        """Configures Adam."""
        return self.scheduled(torch.optim.Adam(self.parameter_groups()))


def _token_batch(model: LanguageModel, texts: Sequence[tuple[str, str]], requests: Sequence[EditRequest]) -> TokenBatch:
    """Tokenises the first texts, each prefixed with a request."""
    pairs = zip(texts, requests, strict=False)
    encoded = [model.encoder.encode(prepend_request(request, prompt), answer) for (prompt, answer), request in pairs]
    return model.encoder.collate(encoded).to(model.device)


def _nll(log_probs: Tensor, texts: TokenBatch) -> Tensor:
    """Computes the (R) mean negative log-likelihood of each text's target."""
    chosen = log_probs.gather(-1, texts.target_ids[:, None])[:, 0]
    return mean_by_row(-chosen, texts.target_rows, len(texts))
