"""Training settings of editors: learning rates, their schedule, and loss weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_edit import ranges
from lightning_edit.errors import ConfigurationError

Schedule = Literal["constant", "cosine"]
_WHERE = "model.optimization"


@dataclass(frozen=True)
class Optimization:
    """Learning-rate schedule and initial weights of a run.

    Args:
        warmup_steps: Number of steps of linear warm-up.
        schedule: "constant", or "cosine" decay to zero over the run.
        start: Checkpoint of an editor of the same shape, to initialise the weights.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    warmup_steps: int = 0
    schedule: Schedule = "constant"
    start: str | None = None

    def __post_init__(self) -> None:
        ranges.at_least(0, _WHERE, warmup_steps=self.warmup_steps)
        ranges.one_of(get_args(Schedule), _WHERE, schedule=self.schedule)


@dataclass(frozen=True)
class HypernetworkOptimization(Optimization):
    """How hypernetworks are trained.

    Args:
        warmup_steps: Number of steps of linear warm-up.
        schedule: "constant", or "cosine" decay to zero over the run.
        start: Checkpoint of an editor of the same shape, to initialise the weights.
        edit_weight: Weight of the target's loss (the authors' c_edit, 0.1).
        locality_weight: Weight of the divergence from the unedited model (the authors' c_loc, 1.0).
        learning_rate: Adam's learning rate for the networks. The authors use 1e-6 with weights of unit variance and
            100,000 and more steps; ours start smaller, and short runs need a larger rate.
        step_size_learning_rate: Adam's learning rate for the step sizes (the authors use 1e-4).

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    edit_weight: float = 0.1
    locality_weight: float = 1.0
    learning_rate: float = 7e-4
    step_size_learning_rate: float = 3e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.at_least(0, _WHERE, edit_weight=self.edit_weight, locality_weight=self.locality_weight)
        ranges.at_least(0, _WHERE, learning_rate=self.learning_rate)
        ranges.at_least(0, _WHERE, step_size_learning_rate=self.step_size_learning_rate)


@dataclass(frozen=True)
class MemoryOptimization(Optimization):
    """How the parts of SERAC are trained.

    Args:
        warmup_steps: Number of steps of linear warm-up.
        schedule: "constant", or "cosine" decay to zero over the run.
        start: Checkpoint of an editor of the same shape, to initialise the weights; this allows training the classifier
            and the counterfactual model one after the other.
        objective: "supervised": separate losses, the classifier's binary cross-entropy and the counterfactual model's
            loss on the matching request (the paper's choice). "mixed": the loss of the mixture s · p_counterfactual +
            (1 - s) · p_base, s being the largest scope probability, on rephrases, and its divergence from the base on
            locality prompts; requires a counterfactual model with the base's tokens.
        subject_examples: Whether to add hard examples about a request's subject. Without them, a classifier trained on
            unrelated locality prompts learns to look only at the subject.
        hardest_negatives: Whether the classifier's loss uses only the most probable of a prompt's out-of-scope
            requests. Routing depends on that one alone, and in a mean over all pairs (the paper's equation) the easy
            ones outweigh it.
        train_scope: Whether the scope classifier is trained.
        train_counterfactual: Whether the counterfactual model is trained.
        scope_weight: Weight of the classifier's loss; the counterfactual model's has weight one.
        learning_rate: Adam's learning rate for the counterfactual model. (The authors use 1e-5 for whole models.)
        scope_learning_rate: Adam's learning rate for the scope classifier's projection and scale.
        encoder_learning_rate: Adam's learning rate for the trained pretrained layers.

    Raises:
        ConfigurationError: If nothing is to be trained, or a setting is out of range.
    """

    objective: Literal["supervised", "mixed"] = "supervised"
    subject_examples: bool = True
    hardest_negatives: bool = True
    train_scope: bool = True
    train_counterfactual: bool = True
    scope_weight: float = 1.0
    learning_rate: float = 5e-4
    scope_learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.train_scope or self.train_counterfactual):
            raise ConfigurationError("nothing to train: set train_scope or train_counterfactual")
        ranges.one_of(("supervised", "mixed"), _WHERE, objective=self.objective)
        ranges.at_least(0, _WHERE, scope_weight=self.scope_weight, learning_rate=self.learning_rate)
        ranges.at_least(0, _WHERE, scope_learning_rate=self.scope_learning_rate)
        ranges.at_least(0, _WHERE, encoder_learning_rate=self.encoder_learning_rate)


@dataclass(frozen=True)
class ScopedOptimization(HypernetworkOptimization):
    """How hypernetworks are trained together with the scope of their edits.

    Args:
        warmup_steps: Number of steps of linear warm-up.
        schedule: "constant", or "cosine" decay to zero over the run.
        start: Checkpoint of an editor of the same shape, to initialise the weights.
        edit_weight: Weight of the target's loss.
        locality_weight: Weight of the divergence from the unedited model, as far as the scope lets a change apply.
        learning_rate: Adam's learning rate for the networks.
        step_size_learning_rate: Adam's learning rate for the step sizes.
        scope_weight: Weight of the scope classifier's loss.
        subject_examples: See :class:`MemoryOptimization`. Not needed where the records' locality prompts ask about the
            same subject and the same relation, and wrong where two wordings of one relation have no word in common.
        hardest_negatives: See :class:`MemoryOptimization`.
        scope_learning_rate: Adam's learning rate for the scope classifier's projection and scale.
        encoder_learning_rate: Adam's learning rate for the trained pretrained layers.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    scope_weight: float = 1.0
    subject_examples: bool = True
    hardest_negatives: bool = True
    scope_learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.at_least(0, _WHERE, scope_weight=self.scope_weight, scope_learning_rate=self.scope_learning_rate)
        ranges.at_least(0, _WHERE, encoder_learning_rate=self.encoder_learning_rate)
