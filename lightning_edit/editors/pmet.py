"""PMET: Precise Model Editing in a Transformer (Li et al. 2024, arXiv 2308.08742)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.locate import PLACE
from lightning_edit.editors.spread import SpreadEditor
from lightning_edit.editors.value_search import ValueSettings
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.key_value import least_squares_update
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap
from lightning_edit.models.statistics import Statistics

ATTENTION = "attention"


class PMET(SpreadEditor):
    """PMET: values are sought for the MLP's and the attention's output together; only the MLP is written.

    The attention's change absorbs what is not the fact's, and is thrown away. The residual of the MLP's output at the
    last layer is spread with square roots, ΔW = (R/√d) Kᵀ(λC + KKᵀ)⁻¹, d counting the layers left.

    Args:
        layers: Layers to edit. The authors edit 3 to 8 of 28 of GPT-J.
        covariance_weight: λ (the authors use 6,000 for GPT-J).
        steps: Evaluations of the loss (the authors' 30).
        learning_rate: Adam's (the authors' 0.2 for GPT-J).
        clamp_norm: Largest |δ| in units of |h| (the authors' 0.75).
        weight_decay: Weight of |δ| / |h|² (the authors' 0.5).
        kl_weight: Weight of the divergence (the authors' 1).
        satisfied_weight: Weight of the target's loss in the step after one in which every target token was the most
            probable one (the authors' 0.1).
        satisfied_kl: End in such a step if the weighted divergence is at most this (the authors' 0.01); never if None.
        common: See :class:`LocateEditor`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        covariance_weight: float = 6000.0,
        steps: int = 30,
        learning_rate: float = 0.2,
        clamp_norm: float = 0.75,
        weight_decay: float = 0.5,
        kl_weight: float = 1.0,
        satisfied_weight: float = 0.1,
        satisfied_kl: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(
            layers=layers,
            steps=steps,
            learning_rate=learning_rate,
            clamp_norm=clamp_norm,
            weight_decay=weight_decay,
            kl_weight=kl_weight,
            **common,
        )
        if self.optimizer != "adam":
            raise ConfigurationError(
                f"editor.optimizer: {self.optimizer!r} searches one value of a loss that stays as it is; PMET searches "
                "two, and weighs its loss anew as it goes; leave it at adam"
            )
        ranges.above(0, "editor", covariance_weight=covariance_weight)
        ranges.at_least(0, "editor", satisfied_weight=satisfied_weight)
        self.covariance_weight = covariance_weight
        self.satisfied_weight, self.satisfied_kl = satisfied_weight, satisfied_kl

    def value_settings(self) -> ValueSettings:
        """See :meth:`LocateEditor.value_settings`."""
        settings = super().value_settings()
        return replace(settings, satisfied_weight=self.satisfied_weight, satisfied_kl=self.satisfied_kl)

    def taps(self, model: LanguageModel, sites: Sequence[EditSite]) -> dict[str, Tap]:
        """The output projections of MLP and attention in the last layer."""
        last = sites[-1]
        attention = model.layer_map.attention_site(last.layer)
        return {
            PLACE: Tap(last.module, "output", last.layer),
            ATTENTION: Tap(attention.module, "output", last.layer),
        }

    def share(self, layers_left: int) -> float:
        """The square root of the number of layers left."""
        return float(layers_left**0.5)

    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """See :meth:`SpreadEditor.left_factor`."""
        return least_squares_update(keys, statistics.inverse_times(site.name, keys) / self.covariance_weight)
