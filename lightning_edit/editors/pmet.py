"""PMET: Precise Model Editing in a Transformer (Li et al. 2024, arXiv 2308.08742)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.locate import PLACE, Covariance
from lightning_edit.editors.prompts import ContextSettings
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
    """PMET: searches values for the outputs of MLP and attention together, but edits only the MLP.

    The attention's change absorbs what is not specific to the fact, and is discarded. The residual of the MLP's output
    at the last layer is spread with square roots, ΔW = (R/√d) Kᵀ(λC + KKᵀ)⁻¹, d being the number of layers left.

    Args:
        layers: Layers to edit. The authors edit 3 to 8 of 28 of GPT-J.
        covariance_weight: λ (the authors use 6,000 for GPT-J).
        search: How values are searched, by default with the authors' settings for GPT-J: 30 evaluations, a learning
            rate of 0.2, |δ| ≤ 0.75 |h|, a weight decay of 0.5, a weight of 1 for the divergence, and of 0.1 for the
            target's loss once every target token is the most probable one.
        contexts: See :class:`LocateEditor`.
        statistics: See :class:`LocateEditor`.
        covariance: See :class:`LocateEditor`.
        contradictions: See :class:`LocateEditor`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        covariance_weight: float = 6000.0,
        search: ValueSettings = ValueSettings(
            steps=30, learning_rate=0.2, weight_decay=0.5, clamp_norm=0.75, kl_weight=1.0, satisfied_weight=0.1
        ),
        contexts: ContextSettings = ContextSettings(),
        statistics: str | None = None,
        covariance: Covariance = "fitted",
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__(layers, statistics, covariance, search, contexts, contradictions)
        if search.optimizer != "adam":
            raise ConfigurationError(
                f"editor.search.optimizer: {search.optimizer!r} searches one value, and PMET searches two; leave it at "
                "adam"
            )
        ranges.above(0, "editor", covariance_weight=covariance_weight)
        self.covariance_weight = covariance_weight

    def taps(self, model: LanguageModel, sites: Sequence[EditSite]) -> dict[str, Tap]:
        """Returns taps at the output projections of MLP and attention in the last layer."""
        last = sites[-1]
        attention = model.layer_map.attention_site(last.layer)
        return {
            PLACE: Tap(last.module, "output", last.layer),
            ATTENTION: Tap(attention.module, "output", last.layer),
        }

    def share(self, layers_left: int) -> float:
        """Returns the square root of the number of layers left."""
        return float(layers_left**0.5)

    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """See :meth:`SpreadEditor.left_factor`."""
        return least_squares_update(keys, statistics.inverse_times(site.name, keys) / self.covariance_weight)
