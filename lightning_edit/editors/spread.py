"""What MEMIT and its relatives share: a residual spread over several layers, keys read anew after each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.editors.job import Job
from lightning_edit.editors.locate import PLACE, LocateEditor
from lightning_edit.editors.prompts import BARE, STARTED_SAMPLES, Sampling
from lightning_edit.edits import StackedFactors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap
from lightning_edit.models.statistics import Statistics


class SpreadEditor(LocateEditor):
    """Edits n requests jointly in several layers (Meng et al. 2023, arXiv 2210.07229, algorithm 1).

    For each request a value z is found for the hidden state at the last of the layers. Then, from the lowest layer up,
    the keys K and the residual R = z - h are read on the model as edited so far, and the layer is changed by A (R/d)ᵀ,
    where d counts the layers that are left and A is the method's own.
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
        """The output of the last layer's block."""
        last = sites[-1].layer
        return {PLACE: Tap(model.layer_map.block(last), "output", last)}

    def share(self, layers_left: int) -> float:
        """What the residual is divided by."""
        return float(layers_left)

    @abstractmethod
    def left_factor(self, site: EditSite, keys: Tensor, statistics: Statistics, earlier: Tensor | None) -> Tensor:
        """(M, n) the left factor A for the (M, n) keys of an edit, given Σ k kᵀ, (M, M), over earlier edits."""

    def updates(self, model: LanguageModel, job: Job, statistics: Statistics) -> dict[str, StackedFactors]:
        """See :meth:`LocateEditor.updates`."""
        tap = self.taps(model, job.sites)[PLACE]
        targets = torch.stack([value.target(PLACE).double() for value in job.values])
        partial: dict[str, StackedFactors] = {}
        for index, site in enumerate(job.sites):
            keys = self.keys(model, job, site, partial)
            current = self.readings(model, job, {PLACE: tap}, partial, [BARE])[PLACE][:, 0]
            residual = (targets - current) / self.share(len(job.sites) - index)
            factors = []
            for group in range(job.groups):
                members = job.members(group)
                left = self.left_factor(site, keys.mean[members].T, statistics, job.earlier_keys(site))
                factors.append((left, residual[members]))
            partial[site.name] = job.stacked(factors)
        return partial
