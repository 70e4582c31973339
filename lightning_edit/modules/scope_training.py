"""A training step of a scope classifier, for all modules that train one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.distributed import lists_of_all_processes, mean_over_processes
from lightning_edit.functional.scope import scope_losses
from lightning_edit.models.scope import ScopeClassifier
from lightning_edit.modules.scope_examples import ScopeExample, judged_pairs, subject_examples
from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class ScopeStep:
    """Prompts of a training step, and how probable it is that they are in the scope of its requests.

    Args:
        examples: The prompts (Q): first the batch's rephrases and locality prompts, then those about subjects.
        memory: The requests of all processes (M).
        first: Index of this process's first request among them.
        log_p: (Q, M) log-probabilities.
    """

    examples: list[ScopeExample]
    memory: list[EditRequest]
    first: int
    log_p: Tensor

    def loss(self, hardest_negatives: bool) -> Tensor:
        """Computes the () classifier's loss; see :func:`scope_losses`."""
        in_scope, counted = judged_pairs(self.examples, self.memory)
        in_scope, counted = in_scope.to(self.log_p.device), counted.to(self.log_p.device)
        positive, negative = scope_losses(self.log_p, in_scope, counted, hardest_negatives)
        return mean_of_all_processes(positive) + mean_of_all_processes(negative)

    def hit_rates(self, threshold: float) -> dict[str, Tensor | float]:
        """Computes the shares of prompts in scope and out of scope that reach the threshold for any request."""
        hit = self.log_p.detach().exp().max(dim=1).values >= threshold
        inside = torch.tensor([example.owner is not None for example in self.examples], device=hit.device)
        rates = {"hit_rate": hit[inside], "false_hit_rate": hit[~inside]}
        return {name: values.float().mean() for name, values in rates.items() if len(values)}


def scope_step(classifier: ScopeClassifier, batch: TrainingBatch, about_subjects: bool, trained: bool) -> ScopeStep:
    """Scores the prompts of a batch with the requests of all processes.

    Args:
        classifier: The classifier.
        batch: The batch.
        about_subjects: Whether to add the prompts of :func:`subject_examples`.
        trained: Whether gradients flow into the classifier.
    """
    memory, first = lists_of_all_processes(batch.requests)
    examples = [
        ScopeExample(prompt, first + request_of(batch, row) if row < batch.rephrases else None)
        for row, (prompt, _) in enumerate(batch.outer_texts)
    ]
    if about_subjects:
        examples += subject_examples(memory, range(first, first + len(batch.requests)))
    with torch.set_grad_enabled(trained):
        keys = classifier.remember([request.prompt for request in memory])
        log_p = classifier.log_similarity([example.prompt for example in examples], keys)
    return ScopeStep(examples, memory, first, log_p)


def request_of(batch: TrainingBatch, row: int) -> int:
    """Returns the index of the request that a text belongs to."""
    places: list[int] = (batch.edit_of_request == batch.edit_of_outer[row]).nonzero()[:, 0].tolist()
    request = request_for([batch.requests[place] for place in places], batch.outer_texts[row])
    return next(place for place in places if batch.requests[place] is request)


def request_for(requests: Sequence[EditRequest], text: tuple[str, str]) -> EditRequest:
    """Finds the request whose target is a rephrase's answer; the first request if there is none."""
    return next((request for request in requests if request.target == text[1].strip()), requests[0])


def mean_of_all_processes(losses: Tensor) -> Tensor:
    """Averages losses over all processes, so that averaged gradients are those of the whole batch."""
    # Without losses in any process, the sum is zero and the divisor does not matter.
    return losses.sum() / (mean_over_processes(len(losses), losses.device) or 1.0)


def scope_parameters(classifier: ScopeClassifier, rate: float, encoder_rate: float) -> list[dict[str, Any]]:
    """Returns a classifier's trained parameters as an optimizer's groups.

    Args:
        classifier: The classifier.
        rate: Learning rate of new parameters.
        encoder_rate: Learning rate of pretrained ones.
    """
    pretrained = classifier.pretrained()
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    new = [parameter for parameter in trained if all(parameter is not other for other in pretrained)]
    rates = {"scope": (new, rate), "encoder": (pretrained, encoder_rate)}
    return [{"params": part, "lr": part_rate, "name": name} for name, (part, part_rate) in rates.items() if part]
