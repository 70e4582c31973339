"""EMMET: Equality-constrained Mass Model Editing in a Transformer (Gupta et al. 2024, arXiv 2403.14236)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.locate import Covariance
from lightning_edit.editors.prompts import ContextSettings
from lightning_edit.editors.spread import SpreadEditor
from lightning_edit.editors.value_search import ValueSettings
from lightning_edit.errors import EditError
from lightning_edit.functional.key_value import constrained_update
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.statistics import IdentityStatistics, Statistics

_SAME = 1e-5
"""Relative singular value below which keys count as linearly dependent; rounding causes 1e-7."""


class EMMET(SpreadEditor):
    """EMMET: MEMIT's objective under ROME's equality constraint, for n requests at once.

    ΔW = R D⁻¹ Kᵀ C'⁻¹ with C' = λC + εI and D = KᵀC'⁻¹K + βI; β is added only for more than one request.

    Args:
        layers: Layers to edit. The authors edit one: 17 of 48 of GPT-2 XL, 5 of 28 of GPT-J, 5 of 32 of Llama-2 7B.
        covariance_weight: λ (the authors use 1,000 for GPT-2 XL and 1 for the others; without β it has no effect).
        constraint_ridge: β (the authors' 0.1).
        covariance_ridge: ε (the authors' 0).
        search: How values are searched, by default with the authors' |δ| ≤ 0.75 |h| and weight decay of 0.5 (4 and 1e-3
            for Llama-2).
        contexts: See :class:`LocateEditor`.
        statistics: See :class:`LocateEditor`.
        covariance: See :class:`LocateEditor`.
        contradictions: See :class:`LocateEditor`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        covariance_weight: float = 1.0,
        constraint_ridge: float = 0.1,
        covariance_ridge: float = 0.0,
        search: ValueSettings = ValueSettings(clamp_norm=0.75, weight_decay=0.5),
        contexts: ContextSettings = ContextSettings(),
        statistics: str | None = None,
        covariance: Covariance = "fitted",
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__(layers, statistics, covariance, search, contexts, contradictions)
        ranges.above(0, "editor", covariance_weight=covariance_weight)
        ranges.at_least(0, "editor", constraint_ridge=constraint_ridge, covariance_ridge=covariance_ridge)
        self.covariance_weight = covariance_weight
        self.constraint_ridge, self.covariance_ridge = constraint_ridge, covariance_ridge

    def default_layers(self, depth: int) -> list[int]:
        """See :meth:`LocateEditor.default_layers`: one layer, a sixth of the way up."""
        return [depth // 6]

    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """See :meth:`SpreadEditor.left_factor`.

        Raises:
            EditError: If the keys are linearly dependent and there is no ridge.
        """
        several = keys.shape[1] > 1
        ridge = self.constraint_ridge if several else 0.0
        if several and not ridge and int(torch.linalg.matrix_rank(keys, rtol=_SAME)) < keys.shape[1]:
            raise EditError(
                f"requests of one edit read the same key at {site.name}, or keys that depend on one another, where not "
                "every value can be written; set editor.constraint_ridge above zero, or edit them apart"
            )
        return constrained_update(keys, self._weighted(site, keys, statistics), ridge=ridge)

    def _weighted(self, site: EditSite, keys: Tensor, statistics: Statistics) -> Tensor:
        if self.covariance_ridge == 0:
            return statistics.inverse_times(site.name, keys) / self.covariance_weight
        if isinstance(statistics, IdentityStatistics):
            return keys / (self.covariance_weight + self.covariance_ridge)
        moment = self.covariance_weight * statistics.moment(site.name).double().to(keys.device)
        identity = torch.eye(len(moment), dtype=torch.float64, device=keys.device)
        solved: Tensor = torch.linalg.solve(moment + self.covariance_ridge * identity, keys)
        return solved
