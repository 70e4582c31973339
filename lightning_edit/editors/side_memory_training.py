"""Trains WISE's side memories with its margins on the activation gap (Wang et al. 2024, 2405.14768, equation 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from lightning_edit.editors.base import Groups, name_of
from lightning_edit.editors.prompts import BARE
from lightning_edit.editors.side_memory import (
    MATRIX,
    SHARDS,
    THRESHOLD,
    activation_gap,
    activation_name,
    site_states,
)
from lightning_edit.editors.tuning import Tuned, TuningSettings, TuningText, grouped_term, tune, tuning_text
from lightning_edit.edits import Memory
from lightning_edit.edits.hooks import Term
from lightning_edit.edits.memory import named_requests
from lightning_edit.models.cached_texts import TextBatch
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.records import EditRequest


@dataclass(frozen=True)
class Margins:
    """The margins of the activation loss (equation 4 of the paper).

    Args:
        outside: α, which the activation of unrelated text should stay below (5 for Llama-2 7B).
        inside: β, which that of the edited prompt should exceed (20).
        between: γ, by which the two should differ (10).
    """

    outside: float = 5.0
    inside: float = 20.0
    between: float = 10.0


@dataclass(frozen=True)
class SideMemorySettings:
    """How side memories are trained.

    Args:
        mask_ratio: ρ, the share of the elements that take a gradient.
        margins: α, β and γ.
        norm_constraint: Largest change of an element.
        tuning: Steps and learning rate of the gradient descent.
        seed: Seed of the masks.
    """

    mask_ratio: float
    margins: Margins
    norm_constraint: float
    tuning: TuningSettings
    seed: int


class SideMemories(Tuned):
    """ΔW of each edit, its mask, and the states that its activation gap is measured on.

    Args:
        model: The base model.
        site: The copied matrix.
        groups: The requests of each edit.
        settings: How they are trained.
        contexts: Texts with "{}" in place of the prompt, the bare one first.
        unrelated: Texts that stand for everything else.
    """

    def __init__(
        self,
        model: LanguageModel,
        site: EditSite,
        groups: Groups,
        settings: SideMemorySettings,
        contexts: Sequence[str],
        unrelated: Sequence[str],
    ) -> None:
        shape, device = (site.fan_in, site.fan_out), site.weight.device
        super().__init__([[torch.zeros(shape, device=device, requires_grad=True)] for _ in groups])
        self.model, self.site, self.groups, self.settings = model, site, groups, settings
        self.contexts, self.unrelated = contexts, [model.encoder.encode(text) for text in unrelated]
        self.activation = ACT2FN[activation_name(model)]
        self.masks = [self._mask(group[0], shape).to(device) for group in groups]
        self.inside: list[list[tuple[Tensor, Tensor]]] = [[] for _ in groups]
        self.outside: list[tuple[Tensor, Tensor]] = []

    def _mask(self, request: EditRequest, shape: tuple[int, int]) -> Tensor:
        seed = _checksum(request) * 1009 + self.settings.seed
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < self.settings.mask_ratio

    def learn(self, edits: Sequence[int], turn: int) -> dict[int, str]:
        """Trains the ``turn``-th request of some edits, side by side.

        Returns:
            The problem of each edit that failed.
        """
        requests = [self.groups[edit][turn] for edit in edits]
        rows = [self._rows(request) for request in requests]
        flat = [one.text for group in rows for one in group]
        states = site_states(self.model, flat, self.site.name)
        count = len(rows[0]) if rows else 0
        for place, edit in enumerate(edits):
            self.inside[edit] = states[place * count : (place + 1) * count]
        unrelated = [self.unrelated[_checksum(request) % len(self.unrelated)] for request in requests]
        self.outside = site_states(self.model, unrelated, self.site.name)
        selection, names = _Selection(self, edits), [name_of(request) for request in requests]
        failed = tune(self.model, rows, names, selection, self.site.layer, self.settings.tuning, "side memories")
        return {edits[place]: problem for place, problem in failed.items()}

    def _rows(self, request: EditRequest) -> list[TuningText]:
        """A request with its target in every context."""
        prompts = [context.replace(BARE, request.prompt) for context in self.contexts]
        return [tuning_text(self.model, prompt, request.target, self.settings.tuning) for prompt in prompts]

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        """See :meth:`Tuned.terms`."""
        return {self.site.name: grouped_term(self.parameters, rows)}

    def gap(self, edit: int, states: tuple[Tensor, Tensor]) -> Tensor:
        """() mean gap over a text's tokens."""
        x, output = states
        return activation_gap(self.activation, output, x @ self.parameters[edit][0]).mean()

    @torch.no_grad()
    def memory(self, edit: int, activation_ratio: float) -> Memory:
        """Returns the side memory of an edit, whose threshold is a share of the smallest gap of its prompts.

        Args:
            edit: The edit.
            activation_ratio: That share.
        """
        group = self.groups[edit]
        prompts = [self.model.encoder.encode(request.prompt) for request in group]
        gaps = [float(self.gap(edit, states)) for states in site_states(self.model, prompts, self.site.name)]
        values = {
            MATRIX: self.parameters[edit][0].detach()[None],
            THRESHOLD: torch.tensor([activation_ratio * min(gaps)]),
            SHARDS: torch.ones(1, dtype=torch.int64),
        }
        return Memory((named_requests(group),), values)


def _checksum(request: EditRequest) -> int:
    """Returns a number that depends on a request alone, so that its edit does not depend on others in a batch."""
    return sum(request.prompt.encode())


class _Selection(Tuned):
    """Some of the side memories, counted from zero."""

    def __init__(self, memories: SideMemories, edits: Sequence[int]) -> None:
        super().__init__([memories.parameters[edit] for edit in edits])
        self.memories, self.edits = memories, list(edits)

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        return self.memories.terms([(self.edits[edit], places) for edit, places in rows], batch)

    def penalty(self, edit: int) -> Tensor:
        memories, number = self.memories, self.edits[edit]
        inside = torch.stack([memories.gap(number, states) for states in memories.inside[number]])
        return margin_loss(inside, memories.gap(number, memories.outside[edit]), memories.settings.margins)

    def before_step(self, edit: int) -> None:
        gradient = self.parameters[edit][0].grad
        if gradient is not None:
            gradient *= self.memories.masks[self.edits[edit]]

    @torch.no_grad()
    def after_step(self, edit: int, epoch: int) -> None:
        bound = self.memories.settings.norm_constraint
        self.parameters[edit][0].clamp_(-bound, bound)

    def optimizer(self, parameters: Sequence[Tensor], settings: TuningSettings) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def margin_loss(inside: Tensor, outside: Tensor, margins: Margins) -> Tensor:
    """Computes [Δ_out - Δ_in + γ]₊ + [Δ_out - α]₊ + [β - Δ_in]₊, each averaged over its positive terms.

    Args:
        inside: (C,) activation gaps of the edited prompt in its contexts.
        outside: () gap of an unrelated text.
        margins: α, β and γ.

    Returns:
        () the loss.
    """
    return (
        _positive_mean(outside - inside + margins.between)
        + _positive_mean(outside[None] - margins.outside)
        + _positive_mean(margins.inside - inside)
    )


def _positive_mean(values: Tensor) -> Tensor:
    positive = values > 0
    return (values * positive).sum() / positive.sum().clamp(min=1)
