"""AlphaEdit: Null-Space Constrained Knowledge Editing (Fang et al. 2025, arXiv 2410.02355)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.locate import Covariance
from lightning_edit.editors.prompts import ContextSettings
from lightning_edit.editors.spread import SpreadEditor
from lightning_edit.editors.update_inputs import UpdateInputs, keys_name
from lightning_edit.editors.value_search import ValueSettings
from lightning_edit.edits import StackedFactors
from lightning_edit.errors import EditError
from lightning_edit.functional.key_value import null_space, null_space_update
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.statistics import Statistics


class AlphaEdit(SpreadEditor):
    """AlphaEdit: MEMIT's update projected onto the null space of preserved knowledge.

    A = (P(KKᵀ + EEᵀ) + L₂I)⁻¹ P K, where P projects onto the eigenvectors of the keys' second moment with eigenvalues
    below a threshold, and E holds the keys of earlier edits. Each edit stores its keys at each site, read after all of
    its layers were changed; a sequence accumulates EEᵀ.

    Args:
        layers: Layers to edit. The authors edit 13 to 17 of 48 of GPT-2 XL, 3 to 8 of 28 of GPT-J and 4 to 8 of 32 of
            Llama-3 8B.
        threshold: Largest eigenvalue that counts as zero (the authors' 0.02).
        ridge: L₂ (10 in the authors' settings).
        search: How values are searched, by default with the authors' |δ| ≤ 0.75 |h| and weight decay of 0.5.
        contexts: See :class:`LocateEditor`.
        statistics: See :class:`LocateEditor`.
        covariance: See :class:`LocateEditor`.
        contradictions: See :class:`LocateEditor`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        threshold: float = 0.02,
        ridge: float = 10.0,
        search: ValueSettings = ValueSettings(clamp_norm=0.75, weight_decay=0.5),
        contexts: ContextSettings = ContextSettings(),
        statistics: str | None = None,
        covariance: Covariance = "fitted",
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__(layers, statistics, covariance, search, contexts, contradictions)
        ranges.above(0, "editor", threshold=threshold, ridge=ridge)
        self.threshold, self.ridge = threshold, ridge
        self._bases: dict[str, tuple[Tensor, Tensor]] = {}

    def basis(self, site: EditSite, statistics: Statistics) -> Tensor:
        """Returns the (M, R) float64 basis of the null space at a site, cached for each second moment.

        Raises:
            EditError: If the null space is empty.
        """
        moment = statistics.moment(site.name)
        known = self._bases.get(site.name)
        if known is None or known[0] is not moment:
            basis = null_space(moment, self.threshold)
            if not basis.shape[1]:
                raise EditError(
                    f"no eigenvalue of the keys' second moment at {site.name} is below {self.threshold}: there is no "
                    "null space to edit in; raise editor.threshold"
                )
            known = self._bases[site.name] = (moment, basis)
        return known[1]

    def require(self, site: EditSite, statistics: Statistics) -> None:
        """See :meth:`LocateEditor.require`; the null space must not be empty."""
        self.basis(site, statistics)

    def statistics_findings(self, model: LanguageModel) -> dict[str, Any]:
        """See :meth:`LocateEditor.statistics_findings`; each site's null-space dimension and number of inputs."""
        statistics = self.ready_statistics(model)
        sites = [model.layer_map.site(layer) for layer in self.edited_layers(model)]
        ranks = {site.name: [self.basis(site, statistics).shape[1], site.fan_in] for site in sites}
        return {**super().statistics_findings(model), "null_space": ranks}

    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """See :meth:`SpreadEditor.left_factor`."""
        basis = self.basis(site, statistics).to(keys.device)
        return null_space_update(keys, basis, earlier, self.ridge)

    def states(
        self, model: LanguageModel, inputs: UpdateInputs, changes: Mapping[str, StackedFactors]
    ) -> list[dict[str, Tensor]]:
        """See :meth:`LocateEditor.states`: the keys of the edit's requests, (n, M) float64 at each site."""
        keys = {keys_name(site): self.keys(model, inputs, site, changes).mean for site in inputs.sites}
        return [{name: rows[inputs.members(edit)] for name, rows in keys.items()} for edit in range(inputs.groups)]
