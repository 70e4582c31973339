"""Base class of MEMIT and its relatives, which spread a residual over several layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.editors.locate import PLACE, LocateEditor
from lightning_edit.editors.prompts import BARE, STARTED_SAMPLES, Sampling
from lightning_edit.editors.update_inputs import UpdateInputs
from lightning_edit.edits import StackedFactors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap
from lightning_edit.models.statistics import Statistics


class SpreadEditor(LocateEditor):
    """Edits n requests jointly in several layers (Meng et al. 2023, arXiv 2210.07229, algorithm 1).

    For each request, a value z is searched for the hidden state at the last of the layers. Then, from the lowest layer
    up, the keys K and the residual R = z - h are read on the model as edited so far, and the layer is changed by
    A (R/d)ᵀ, where d is the number of layers left and A depends on the method.
    """

    @property
    def sampling(self) -> Sampling:
        """See :attr:`LocateEditor.sampling`."""
        return STARTED_SAMPLES

    def default_layers(self, depth: int) -> list[int]:
        """See :meth:`LocateEditor.default_layers`: five layers around a sixth of the way up."""
        middle = max(depth // 6, 2)
        return [layer for layer in range(middle - 2, middle + 3) if layer < depth]

    def taps(self, model: LanguageModel, sites: Sequence[EditSite]) -> dict[str, Tap]:
        """Returns a tap at the output of the last layer's block."""
        last = sites[-1].layer
        return {PLACE: Tap(model.layer_map.block(last), "output", last)}

    def share(self, layers_left: int) -> float:
        """Returns the divisor of the residual."""
        return float(layers_left)

    @abstractmethod
    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """Computes the (M, n) left factor A for the (M, n) keys of an edit, given (M, M) Σ k kᵀ of earlier edits."""

    def updates(self, model: LanguageModel, inputs: UpdateInputs, statistics: Statistics) -> dict[str, StackedFactors]:
        """See :meth:`LocateEditor.updates`."""
        tap = self.taps(model, inputs.sites)[PLACE]
        targets = torch.stack([value.target(PLACE).double() for value in inputs.values])
        partial: dict[str, StackedFactors] = {}
        for index, site in enumerate(inputs.sites):
            keys = self.keys(model, inputs, site, partial)
            current = self.readings(model, inputs, {PLACE: tap}, partial, [BARE])[PLACE][:, 0]
            residual = (targets - current) / self.share(len(inputs.sites) - index)
            factors = []
            for group in range(inputs.groups):
                members = inputs.members(group)
                left = self.left_factor(site, keys.mean[members].T, statistics, inputs.earlier_keys(site))
                factors.append((left, residual[members]))
            partial[site.name] = inputs.stacked(factors)
        return partial
