"""Base class of hypernetwork editors, and the network that transforms gradient factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from lightning_edit import ranges
from lightning_edit.distributed import moments_of_all_processes
from lightning_edit.editors.base import Capabilities
from lightning_edit.editors.factors import FactorChunk, FactorStore
from lightning_edit.editors.gradient import GradientEditor, Tokens
from lightning_edit.editors.whitening import KeyWhitening, answering_key_moments
from lightning_edit.edits import StackedDelta
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.moments import Moments, merge_moments, moments, standard_deviation
from lightning_edit.models.capture import GradientFactors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.tokenization import EncodedText


class FactorStatistics(nn.Module):
    """Running mean and standard deviation of vectors, in float64 buffers so that a run resumes exactly.

    Args:
        size: Length of the vectors D.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, parts: Iterable[Tensor]) -> None:
        """Adds vectors, gathered from all processes.

        Args:
            parts: Any number of (N, D) tensors.
        """
        added = Moments(*(torch.zeros_like(buffer) for buffer in (self.count, self.mean, self.square)))
        for part in parts:
            added = merge_moments(added, moments(part))
        merged = Moments(self.count, self.mean, self.square)
        for of_process in moments_of_all_processes(added):
            merged = merge_moments(merged, of_process)
        self.count.copy_(merged.number)
        self.mean.copy_(merged.mean)
        self.square.copy_(merged.square)

    def normalize(self, x: Tensor, epsilon: float) -> Tensor:
        """Computes (x - mean) / (standard deviation + epsilon); the identity before the first update."""
        deviation = standard_deviation(Moments(self.count, self.mean, self.square))
        return (x - self.mean.to(x)) / (deviation.to(x) + epsilon)


class LowRankLayer(nn.Module):
    """Parameters of one low-rank layer, initially the identity, with a scale and shift for each site.

    V has the scale of Xavier's initialisation, so that it can learn the directions that matter. (With the unit variance
    of the authors' code and a low rank, it remains a set of random directions.)

    Args:
        size: Length of the vectors D.
        rank: Rank R.
        sites: Number of sites that share the layer.
    """

    def __init__(self, size: int, rank: int, sites: int) -> None:
        super().__init__()
        rank = min(rank, size)
        self.u = nn.Parameter(torch.zeros(size, rank))
        self.v = nn.Parameter(torch.randn(rank, size) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(sites, size))
        self.shift = nn.Parameter(torch.zeros(sites, size))


LayerFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps h, U, V, b, s, o to the next h; see :func:`lightning_edit.functional.low_rank.low_rank_residual`."""


class FactorNetwork(nn.Module):
    """The network g: (x, δ) to pseudo-factors (x̃, δ̃).

    z = (concat(x, δ) - mean) / (std + ε), then low-rank residual layers with a scale and shift per site.

    Args:
        fan_in: Length of x.
        fan_out: Length of δ.
        sites: Number of sites that share the network; all have this shape.
        rank: Rank of the layers.
        layers: Number of layers.
        epsilon: Added to the standard deviation.
        function: Function of a layer.
    """

    def __init__(
        self, fan_in: int, fan_out: int, sites: int, rank: int, layers: int, epsilon: float, function: LayerFunction
    ) -> None:
        super().__init__()
        self.split_sizes = [fan_in, fan_out]
        self.epsilon, self.function = epsilon, function
        self.statistics = FactorStatistics(fan_in + fan_out)
        self.layers = nn.ModuleList(LowRankLayer(fan_in + fan_out, rank, sites) for _ in range(layers))

    def update_statistics(self, parts: Iterable[FactorChunk]) -> None:
        """Adds factors to the running statistics."""
        self.statistics.update(torch.cat([part.x, part.delta], dim=-1) for part in parts)

    def forward(self, x: Tensor, delta: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
        """Transforms factors.

        Args:
            x: (N, fan_in).
            delta: (N, fan_out).
            site: (N) or () int64 index of each row's site among those that share the network.

        Returns:
            (N, fan_in) and (N, fan_out).
        """
        hidden = self.statistics.normalize(torch.cat([x, delta], dim=-1), self.epsilon)
        for module in self.layers:
            layer = cast(LowRankLayer, module)
            hidden = self.function(hidden, layer.u, layer.v, layer.bias, layer.scale[site], layer.shift[site])
        pseudo_x, pseudo_delta = torch.split(hidden, self.split_sizes, dim=-1)
        return pseudo_x, pseudo_delta


@dataclass(frozen=True)
class Proposal:
    """The changes that a hypernetwork proposes, detached from its graph, and the backward pass into it.

    Args:
        stacked: Changes of the step's edits by site name, made of the leaves.
        leaves: The tensors with respect to which the edited model's loss is differentiated.
        carry: Maps the gradients of the leaves to a scalar whose gradient with respect to the editor's parameters is
            that of the loss; its value is meaningless.
        measures: Values to log.
    """

    stacked: Mapping[str, StackedDelta]
    leaves: Sequence[Tensor]
    carry: Callable[[Sequence[Tensor]], Tensor]
    measures: Mapping[str, Tensor] = field(default_factory=dict)

    def site_of_leaf(self, index: int) -> str:
        """Returns the site of a leaf; every site has the same number of leaves."""
        return list(self.stacked)[index * len(self.stacked) // len(self.leaves)]


class HypernetworkEditor(GradientEditor):
    """Base class of editors whose networks transform the factors of a fine-tuning gradient.

    A subclass defines the layer and how pseudo-factors become a weight change. With ``whitening`` it reads z = W x in
    place of each key x, and its change Δ for z becomes Wᵀ Δ for x.

    Args:
        sites: See :class:`GradientEditor`.
        rank: Rank of the networks' layers.
        hidden_layers: Number of hidden layers; a network has one more.
        step_size: Initial value of the learned step sizes, one per site.
        epsilon: Added to the standard deviation of the factors.
        shared: Whether the sites of one shape share a network.
        tokens: See :class:`GradientEditor`.
        end_token: See :class:`GradientEditor`.
        whitening: Number of principal directions along which the keys are whitened; 0 for none.
    """

    capabilities = Capabilities(fit_reads="records", needs_grad=True, takes_passes=True)

    def __init__(
        self,
        sites: Sequence[int | str],
        rank: int,
        hidden_layers: int,
        step_size: float,
        epsilon: float,
        shared: bool,
        tokens: Tokens = "all",
        end_token: bool = False,
        whitening: int = 0,
    ) -> None:
        super().__init__(sites, tokens, end_token)
        ranges.at_least(1, "editor", rank=rank)
        ranges.at_least(0, "editor", hidden_layers=hidden_layers, epsilon=epsilon, whitening=whitening)
        self.rank, self.hidden_layers = rank, hidden_layers
        self.step_size, self.epsilon, self.shared = step_size, epsilon, shared
        self.whitening = whitening
        self.networks = nn.ModuleDict()
        self.whitenings = nn.ModuleDict()
        self.step_sizes = nn.ParameterDict()
        self._members: dict[str, list[str]] = {}

    @staticmethod
    @abstractmethod
    def layer(x: Tensor, u: Tensor, v: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Computes one layer of the network; see :data:`LayerFunction`."""

    @abstractmethod
    def propose(self, store: FactorStore) -> Proposal:
        """Turns gradient factors, preprocessed by :meth:`prepared`, into the changes of independent edits."""

    def whitened(self, site: str, x: Tensor) -> Tensor:
        """Computes (…, fan_in) z = W x of each row; x itself without whitening."""
        whitened: Tensor = self.whitenings[site_key(site)](x) if self.whitening else x
        return whitened

    def for_inputs(self, site: str, z: Tensor) -> Tensor:
        """Computes (…, fan_in) Wᵀ z of each row, which turns a factor for z = W x into one for x."""
        return cast(KeyWhitening, self.whitenings[site_key(site)]).transposed(z) if self.whitening else z

    def prepared(self, factors: Mapping[str, GradientFactors]) -> Mapping[str, GradientFactors]:
        """See :meth:`GradientEditor.prepared`; whitens the keys.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """
        if not self.whitening:
            return factors
        if not self.networks:
            raise self.not_ready()
        return {site: replace(factor, x=self.whitened(site, factor.x)) for site, factor in factors.items()}

    @property
    def needs_whitening(self) -> bool:
        """Whether :meth:`fit_whitening` has to be called before training."""
        return any(not bool(cast(KeyWhitening, whitening).fitted) for whitening in self.whitenings.values())

    def fit_whitening(
        self, model: LanguageModel, texts: Sequence[EncodedText], passes: ForwardPasses | None = None
    ) -> None:
        """Fits the whitening to the unedited model's keys at the answer positions of texts.

        Args:
            model: The model.
            texts: Prompts with their targets.
            passes: Forward passes with cached hidden states below the lowest site; the model's own by default.

        Raises:
            ConfigurationError: If the texts have too few keys for the number of directions.
        """
        moments = answering_key_moments(model, texts, self.edit_sites(model), passes)
        for site, moment in moments.items():
            try:
                cast(KeyWhitening, self.whitenings[site_key(site)]).fit(moment)
            except ValueError as error:
                raise ConfigurationError(
                    f"editor.whitening: {len(texts)} training texts have too few keys at {site} for {self.whitening} "
                    f"directions ({error}); take fewer, or more records"
                ) from error

    def setup(self, model: LanguageModel) -> None:
        """Builds the networks and a step size for every site."""
        if self.networks:
            return
        members: dict[str, list[EditSite]] = {}
        for site in self.edit_sites(model):
            name = f"{site.fan_in}x{site.fan_out}" if self.shared else site_key(site.name)
            members.setdefault(name, []).append(site)
            self.setup_site(site)
        for name, sites in members.items():
            fan_in, fan_out, layers = sites[0].fan_in, sites[0].fan_out, self.hidden_layers + 1
            self.networks[name] = FactorNetwork(
                fan_in, fan_out, len(sites), self.rank, layers, self.epsilon, self.layer
            )
            self._members[name] = [site.name for site in sites]
        self.to(model.device)

    def setup_site(self, site: EditSite) -> None:
        """Creates the parameters of one site."""
        self.step_sizes[site_key(site.name)] = nn.Parameter(torch.tensor(self.step_size))
        if self.whitening:
            self.whitenings[site_key(site.name)] = KeyWhitening(site.fan_in, self.whitening)

    def network_of(self, site: str) -> tuple[FactorNetwork, Tensor]:
        """Returns the network of a site, and the site's () int64 index among those that share it."""
        for name, sites in self._members.items():
            if site in sites:
                index = torch.tensor(sites.index(site), device=self.step_sizes[site_key(site)].device)
                return cast(FactorNetwork, self.networks[name]), index
        raise self.not_ready()

    def stack(self, store: FactorStore) -> Mapping[str, StackedDelta]:
        """See :meth:`GradientEditor.stack`.

        Raises:
            EditorNotFittedError: If the editor was never set up.
        """
        self.learn_statistics(store)
        return self.propose(store).stacked

    def learn_statistics(self, store: FactorStore) -> None:
        """In train mode, adds all factors to the running statistics before any is transformed."""
        if not self.networks:
            raise self.not_ready()
        if self.training:
            for name, sites in self._members.items():
                network = cast(FactorNetwork, self.networks[name])
                network.update_statistics(part for site in sites for part in store.chunks(site, 4096))


def site_key(site: str) -> str:
    """Converts a site's name to a key of a parameter dictionary, where dots are not allowed."""
    return site.replace(".", "/")
