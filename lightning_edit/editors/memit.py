"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al. 2023, arXiv 2210.07229)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.spread import SpreadEditor
from lightning_edit.functional.key_value import least_squares_update
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.statistics import Statistics


class MEMIT(SpreadEditor):
    """MEMIT: the residual of n requests spread over a range of layers, each changed by least squares.

    ΔW = R Kᵀ (λC + KKᵀ)⁻¹ at every layer, C being the second moment of its keys.

    Args:
        layers: Layers to edit. The authors edit 13 to 17 of 48 of GPT-2 XL and 3 to 8 of 28 of GPT-J.
        covariance_weight: λ (the authors use 20,000 for GPT-2 XL and 15,000 for GPT-J).
        clamp_norm: Largest |δ| in units of |h| (the authors' 0.75).
        weight_decay: Weight of |δ| / |h|² (the authors' 0.5).
        common: See :class:`LocateEditor`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        covariance_weight: float = 15000.0,
        clamp_norm: float = 0.75,
        weight_decay: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(layers=layers, clamp_norm=clamp_norm, weight_decay=weight_decay, **common)
        ranges.above(0, "editor", covariance_weight=covariance_weight)
        self.covariance_weight = covariance_weight

    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """See :meth:`SpreadEditor.left_factor`."""
        return least_squares_update(keys, statistics.inverse_times(site.name, keys) / self.covariance_weight)
