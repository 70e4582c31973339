"""Importance of low-rank triplets by smoothed sensitivity (AdaLoRA, Zhang et al. 2023, arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TripletImportance:
    """Running importance of the triplets (column of A, singular value, row of B) of several sites (section 3.2).

    The sensitivity I = |p ∂L/∂p| of every number p is smoothed to Ī = β₁ Ī + (1 - β₁) I, and its uncertainty to
    Ū = β₂ Ū + (1 - β₂) |I - Ī|. The importance of a number is Ī · Ū; that of a triplet is its singular value's, plus
    the means over its column of A and its row of B.

    Args:
        parameters: A (fan_in, r), the singular values (r, 1) and B (r, fan_out) of each site, one site after another.
        sensitivity_decay: β₁.
        uncertainty_decay: β₂.
    """

    def __init__(self, parameters: Sequence[Tensor], sensitivity_decay: float, uncertainty_decay: float) -> None:
        self._parameters = list(parameters)
        self._decays = sensitivity_decay, uncertainty_decay
        self._sensitivity = [torch.zeros_like(parameter) for parameter in parameters]
        self._uncertainty = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Smooths in the sensitivities of the parameters' current gradients."""
        first, second = self._decays
        numbers = zip(self._parameters, self._sensitivity, self._uncertainty, strict=True)
        for parameter, sensitivity, uncertainty in numbers:
            if parameter.grad is None:
                continue
            current = (parameter * parameter.grad).abs()
            sensitivity.mul_(first).add_((1 - first) * current)
            uncertainty.mul_(second).add_((1 - second) * (current - sensitivity).abs())

    def scores(self) -> list[Tensor]:
        """Computes the (r) importance of each site's triplets."""
        numbers = [first * second for first, second in zip(self._sensitivity, self._uncertainty, strict=True)]
        sites = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        return [values[:, 0] + a.mean(0) + b.mean(1) for a, values, b in sites]
