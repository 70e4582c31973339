"""One plain fine-tuning step, the baseline of MEND."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edit.editors.base import Capabilities
from lightning_edit.editors.factors import FactorStore
from lightning_edit.editors.gradient import GradientEditor
from lightning_edit.edits import StackedDelta, StackedFactors
from lightning_edit.functional.packing import pack_rows


class GradientStep(GradientEditor):
    """Fine-tunes the edit sites with one step of gradient descent: W' = W - α Σ_t x_t δ_tᵀ.

    Args:
        sites: Edit sites: layers (negative ones count from the last) or names of linear modules.
        step_size: Step size α. There is no published value; choose it on validation records.

    Example:
        >>> from lightning_edit import EditRequest
        >>> edit = GradientStep(sites=[-1]).edit(model, [EditRequest("The capital of France is", target="Rome")])
        >>> [delta] = edit.weight_deltas().values()
        >>> delta.dense().shape == model.layer_map.site(-1).weight.T.shape
        True
    """

    capabilities = Capabilities(needs_grad=True, takes_passes=True)

    def __init__(self, sites: Sequence[int | str] = (-6, -5, -4, -3, -2, -1), step_size: float = 0.1) -> None:
        super().__init__(sites)
        self.step_size = step_size

    def stack(self, store: FactorStore) -> dict[str, StackedDelta]:
        """See :meth:`GradientEditor.stack`."""
        stacked: dict[str, StackedDelta] = {}
        for site in store.sites:
            factors = store.whole(site)
            x, delta = (
                pack_rows(factors.x, factors.group, store.edits),
                pack_rows(factors.delta, factors.group, store.edits),
            )
            stacked[site] = StackedFactors(x.transpose(1, 2), -self.step_size * delta)
        return stacked
