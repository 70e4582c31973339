"""AdaLoRA: adaptive budget allocation for low-rank adapters (Zhang et al. 2023, arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.lora import LORA_TUNING, Adapters, LoRA
from lightning_edit.editors.tuning import TuningSettings
from lightning_edit.functional.importance import TripletImportance
from lightning_edit.models.layer_map import EditSite


@dataclass(frozen=True)
class Budget:
    """Rank schedule of AdaLoRA (section 3.3 of the paper; PEFT's defaults).

    Args:
        initial_rank: Singular values of each site at the start.
        target_rank: Their mean number at the end.
        warmup: Steps before the first is removed.
        final: Steps after the last is removed.
        every: Steps between removals.
        sensitivity_decay: β₁ of the smoothed sensitivity.
        uncertainty_decay: β₂ of the smoothed uncertainty.
    """

    initial_rank: int = 12
    target_rank: int = 8
    warmup: int = 0
    final: int = 0
    every: int = 1
    sensitivity_decay: float = 0.85
    uncertainty_decay: float = 0.85

    def __post_init__(self) -> None:
        ranges.at_least(1, "editor.budget", target_rank=self.target_rank, every=self.every)
        ranges.above(self.target_rank, "editor.budget", initial_rank=self.initial_rank)
        ranges.at_least(0, "editor.budget", warmup=self.warmup, final=self.final)

    def values_left(self, step: int, steps: int, sites: int) -> int:
        """Singular values that all sites keep together after a step, counted from one.

        b(t) = b_T + (b_0 - b_T) (1 - (t - t_i)/(T - t_i - t_f))³ between the warm-up t_i and the last t_f steps.
        """
        first, last = self.initial_rank * sites, self.target_rank * sites
        if step <= self.warmup:
            return first
        if step >= steps - self.final:
            return last
        progress = (step - self.warmup) / (steps - self.final - self.warmup)
        return int((first - last) * (1 - progress) ** 3 + last)


class AdaLoRA(LoRA):
    """AdaLoRA: ΔW = s A diag(e) B with near-orthogonal A and B, whose least important singular values are removed.

    The loss has the penalty w · mean(‖AᵀA - I‖_F, ‖BBᵀ - I‖_F) over all factors. After each step the least important
    values (:class:`TripletImportance`), over all sites together, are set to zero until the budget is met.
    s = α / (initial rank + 1e-5), as in PEFT.

    Args:
        targets: Endings of the names of the adapted linear maps.
        layers: Layers that are adapted; all if None.
        budget: How the number of singular values falls.
        alpha: α.
        orthogonality: w (the paper's 0.5).
        dropout: Share of the inputs that is dropped while training.
        tuning: How the requests are fitted.
        seed: Seed of the initialisation and of dropout.
        contradictions: What to do with requests of one edit that have the same prompt and another target.
    """

    def __init__(
        self,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        layers: Sequence[int] | None = None,
        budget: Budget = Budget(),
        alpha: float = 32.0,
        orthogonality: float = 0.5,
        dropout: float = 0.0,
        tuning: TuningSettings = LORA_TUNING,
        seed: int = 0,
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__(targets, layers, budget.initial_rank, alpha, dropout, tuning, seed, contradictions)
        ranges.at_least(0, "editor", orthogonality=orthogonality)
        ranges.above(budget.warmup + budget.final, "editor.tuning", steps=tuning.steps)
        self.budget, self.orthogonality = budget, orthogonality

    def adapters(self, sites: Sequence[EditSite], edits: int) -> Adapters:
        """See :meth:`LoRA.adapters`."""
        scale = self.alpha / (self.budget.initial_rank + 1e-5)
        return _Prunable(
            sites, edits, self.budget, scale, self.dropout, self.seed, self.orthogonality, self.tuning.steps
        )


class _Prunable(Adapters):
    """Adapters with singular values, and running statistics of their importance."""

    def __init__(
        self,
        sites: Sequence[EditSite],
        edits: int,
        budget: Budget,
        scale: float,
        dropout: float,
        seed: int,
        orthogonality: float,
        steps: int,
    ) -> None:
        super().__init__(sites, edits, budget.initial_rank, scale, dropout, seed)
        self.budget, self.orthogonality, self.steps = budget, orthogonality, steps
        decays = budget.sensitivity_decay, budget.uncertainty_decay
        self._importance = [TripletImportance(factors, *decays) for factors in self.parameters]

    def initial(self, generator: torch.Generator) -> list[Tensor]:
        """A and B from N(0, 0.02²), the singular values zero."""
        tensors = []
        for site in self.sites:
            a = 0.02 * torch.randn(site.fan_in, self.rank, generator=generator)
            b = 0.02 * torch.randn(self.rank, site.fan_out, generator=generator)
            tensors += [part.to(site.weight.device) for part in (a, torch.zeros(self.rank, 1), b)]
        return [tensor.requires_grad_() for tensor in tensors]

    def factors(self, edit: int, site: int) -> tuple[Tensor, Tensor]:
        a, values, b = self.parameters[edit][3 * site : 3 * site + 3]
        return a, self.scale * values * b

    def penalty(self, edit: int) -> Tensor | None:
        if not self.orthogonality:
            return None
        identity = torch.eye(self.rank, device=self.parameters[edit][0].device)
        distances = []
        for site in range(len(self.sites)):
            a, _, b = self.parameters[edit][3 * site : 3 * site + 3]
            distances += [(a.T @ a - identity).norm(), (b @ b.T - identity).norm()]
        return self.orthogonality * torch.stack(distances).mean()

    @torch.no_grad()
    def after_step(self, edit: int, epoch: int) -> None:
        budget = self.budget
        if epoch < self.steps - budget.final:
            self._importance[edit].update()
        left = budget.values_left(epoch, self.steps, len(self.sites))
        due = epoch % budget.every == 0 or epoch >= self.steps - budget.final
        if epoch > budget.warmup and due:
            self._keep(edit, left)

    def _keep(self, edit: int, count: int) -> None:
        """Sets all singular values but the ``count`` most important ones to zero."""
        scores = self._importance[edit].scores()
        flat = torch.cat([score.cpu() for score in scores])
        dropped = len(flat) - count
        if dropped <= 0:
            return
        threshold = flat.kthvalue(dropped).values
        for site, score in enumerate(scores):
            self.parameters[edit][3 * site + 1][score.cpu() <= threshold] = 0
