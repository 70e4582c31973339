"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al. 2023, arXiv 2210.07229)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.locate import Covariance
from lightning_edit.editors.prompts import ContextSettings
from lightning_edit.editors.spread import SpreadEditor
from lightning_edit.editors.value_search import ValueSettings
from lightning_edit.functional.key_value import least_squares_update
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.statistics import Statistics


class MEMIT(SpreadEditor):
    """MEMIT: spreads the residual of n requests over a range of layers, each updated by least squares.

    ΔW = R Kᵀ (λC + KKᵀ)⁻¹ at every layer, C being the second moment of its keys.

    Args:
        layers: Layers to edit. The authors edit 13 to 17 of 48 of GPT-2 XL and 3 to 8 of 28 of GPT-J.
        covariance_weight: λ (the authors use 20,000 for GPT-2 XL and 15,000 for GPT-J).
        search: How values are searched, by default with the authors' |δ| ≤ 0.75 |h| and weight decay of 0.5.
        contexts: See :class:`LocateEditor`.
        statistics: See :class:`LocateEditor`.
        covariance: See :class:`LocateEditor`.
        contradictions: See :class:`LocateEditor`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        covariance_weight: float = 15000.0,
        search: ValueSettings = ValueSettings(clamp_norm=0.75, weight_decay=0.5),
        contexts: ContextSettings = ContextSettings(),
        statistics: str | None = None,
        covariance: Covariance = "fitted",
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__(layers, statistics, covariance, search, contexts, contradictions)
        ranges.above(0, "editor", covariance_weight=covariance_weight)
        self.covariance_weight = covariance_weight

    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """See :meth:`SpreadEditor.left_factor`."""
        return least_squares_update(keys, statistics.inverse_times(site.name, keys) / self.covariance_weight)
