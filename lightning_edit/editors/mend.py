"""MEND: Model Editor Networks with Gradient Decomposition (Mitchell et al. 2022, arXiv 2110.11309)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lightning_edit.editors.base import Capabilities
from lightning_edit.editors.checkpoint import load_editor
from lightning_edit.editors.gradient import GradientEditor
from lightning_edit.editors.hypernetwork import FactorStatistics, LowRankLayer
from lightning_edit.edits import StackedFactors
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.low_rank import low_rank_residual
from lightning_edit.functional.packing import pack_rows
from lightning_edit.models.capture import GradientFactors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite


class MENDNetwork(nn.Module):
    """The network g of MEND: (x, δ) to pseudo-factors (x̃, δ̃).

    z = (concat(x, δ) - mean) / (std + ε), then low-rank residual layers with a scale and shift per site.

    Args:
        fan_in: Length of x.
        fan_out: Length of δ.
        sites: Number of sites that share the network; all have this shape.
        rank: Rank of the layers.
        layers: Number of layers.
        epsilon: Added to the standard deviation.
    """

    def __init__(self, fan_in: int, fan_out: int, sites: int, rank: int, layers: int, epsilon: float) -> None:
        super().__init__()
        self.split_sizes = [fan_in, fan_out]
        self.epsilon = epsilon
        self.statistics = FactorStatistics(fan_in + fan_out)
        self.layers = nn.ModuleList(LowRankLayer(fan_in + fan_out, rank, sites) for _ in range(layers))

    def update_statistics(self, x: Tensor, delta: Tensor) -> None:
        """Adds (N, fan_in) inputs and (N, fan_out) gradients to the running statistics."""
        self.statistics.update(torch.cat([x, delta], dim=-1))

    def forward(self, x: Tensor, delta: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
        """Transforms factors.

        Args:
            x: (N, fan_in).
            delta: (N, fan_out).
            site: (N) int64 index of each row's site among those that share the network.

        Returns:
            (N, fan_in) and (N, fan_out).
        """
        hidden = self.statistics.normalize(torch.cat([x, delta], dim=-1), self.epsilon)
        for layer in self.layers:
            own = cast(LowRankLayer, layer)
            hidden = low_rank_residual(hidden, own.u, own.v, own.bias, own.scale[site], own.shift[site])
        pseudo_x, pseudo_delta = torch.split(hidden, self.split_sizes, dim=-1)
        return pseudo_x, pseudo_delta


class MEND(GradientEditor):
    """MEND: a hypernetwork turns the fine-tuning gradient of a request into an edit that generalises and is local.

    The gradient of the target's loss at a linear map is Σ_t x_t δ_tᵀ over the tokens. A network g, shared by the sites
    of one shape, maps each pair of factors to a pseudo-pair, and W' = W - α Σ_t x̃_t δ̃_tᵀ with a learned step size α
    per site. The editor is float32 whatever the precision of the base.

    Two things differ from the authors' code in form, not in what is computed: the step is subtracted, as in the paper
    (they add it and learn the sign), and the statistics take up all sites of a batch before any of them is transformed.

    Args:
        sites: Edit sites: layers (negative ones count from the last; the MLP output projection is edited) or names of
            linear modules. The paper edits the last three blocks.
        rank: Rank of the hypernetwork's layers. The authors use 1920 for models of billions of parameters; 128 is
            enough for a small one, and keeps the checkpoint small.
        hidden_layers: Number of hidden layers; the network has one more (the authors use 1).
        step_size: Start of the learned step sizes α (the authors use 1e-4).
        epsilon: Added to the standard deviation of the factors (the authors use 1e-7).
        shared: Whether the sites of one shape share a network, as in the paper, or each has its own, with its own
            statistics. Sharing saves parameters; separate networks of a lower rank learn faster, because the neurons
            of different layers have nothing in common.
    """

    capabilities = Capabilities(needs_fit=True, needs_grad=True)

    def __init__(
        self,
        sites: Sequence[int | str] = (-6, -5, -4, -3, -2, -1),
        rank: int = 128,
        hidden_layers: int = 1,
        step_size: float = 1e-4,
        epsilon: float = 1e-7,
        shared: bool = True,
    ) -> None:
        super().__init__(sites)
        self.rank, self.hidden_layers = rank, hidden_layers
        self.step_size, self.epsilon, self.shared = step_size, epsilon, shared
        self.networks = nn.ModuleDict()
        self.step_sizes = nn.ParameterDict()

    def setup(self, model: LanguageModel) -> None:
        """Builds the networks, and a step size for every site."""
        if self.networks:
            return
        members: dict[str, list[EditSite]] = {}
        for site in self.edit_sites(model):
            members.setdefault(self._network_of(site.name, site.fan_in, site.fan_out), []).append(site)
            self.step_sizes[_key(site.name)] = nn.Parameter(torch.tensor(self.step_size))
        for name, sites in members.items():
            fan_in, fan_out, layers = sites[0].fan_in, sites[0].fan_out, self.hidden_layers + 1
            self.networks[name] = MENDNetwork(fan_in, fan_out, len(sites), self.rank, layers, self.epsilon)
        self.to(model.device)

    def _network_of(self, site: str, fan_in: int, fan_out: int) -> str:
        """Name of the network that serves a site."""
        return f"{fan_in}x{fan_out}" if self.shared else _key(site)

    def stack(
        self, factors: Mapping[str, GradientFactors], edit_of_row: Tensor, edits: int
    ) -> dict[str, StackedFactors]:
        """See :meth:`GradientEditor.stack`; in train mode the factors enter the running statistics first.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """
        if not self.networks:
            raise self.not_ready()
        stacked: dict[str, StackedFactors] = {}
        members: dict[str, list[str]] = {}
        for name, own in factors.items():
            members.setdefault(self._network_of(name, own.x.shape[1], own.delta.shape[1]), []).append(name)
        for network_name, names in members.items():
            network = cast(MENDNetwork, self.networks[network_name])
            x = torch.cat([factors[name].x for name in names])
            delta = torch.cat([factors[name].delta for name in names])
            counts = torch.tensor([len(factors[name].rows) for name in names], device=x.device)
            site = torch.arange(len(names), device=x.device).repeat_interleave(counts)
            if self.training:
                network.update_statistics(x, delta)
            pseudo = zip(*(part.split(counts.tolist()) for part in network(x, delta, site)), strict=True)
            for name, (pseudo_x, pseudo_delta) in zip(names, pseudo, strict=True):
                group = edit_of_row[factors[name].rows]
                a = pack_rows(pseudo_x, group, edits).transpose(1, 2)
                b = pack_rows(-self.step_sizes[_key(name)] * pseudo_delta, group, edits)
                stacked[name] = StackedFactors(a, b)
        return {name: stacked[name] for name in factors}

    @classmethod
    def from_checkpoint(cls, path: str | Path, model: LanguageModel) -> MEND:
        """Loads a trained MEND from a checkpoint of a run, for the base model that it was trained on.

        Raises:
            BaseModelMismatchError: If the checkpoint belongs to another base model.
            ConfigurationError: If it holds another editor.
        """
        editor = load_editor(path, model)
        if not isinstance(editor, cls):
            raise ConfigurationError(f"{path} holds a {type(editor).__name__}, not a {cls.__name__}; use load_editor")
        return editor


def _key(site: str) -> str:
    """A site's name as a key of a parameter dictionary, where dots are not allowed."""
    return site.replace(".", "/")
