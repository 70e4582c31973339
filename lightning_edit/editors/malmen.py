"""MALMEN: Massive Language Model Editing Network (Tan et al. 2024, arXiv 2311.04661)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_edit.editors.base import Groups
from lightning_edit.editors.factors import FactorChunk, FactorStore
from lightning_edit.editors.gradient import Tokens
from lightning_edit.editors.hypernetwork import HypernetworkEditor, Proposal, site_key
from lightning_edit.edits import StackedDelta, StackedFactors, StackedMatrices
from lightning_edit.functional.low_rank import low_rank_gated
from lightning_edit.functional.packing import pack_rows, slots_within_group
from lightning_edit.functional.ridge import DualRidge, PrimalRidge
from lightning_edit.functional.surrogate import carried, cut
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite


class MALMEN(HypernetworkEditor):
    """MALMEN: combines the parameter shifts of a hypernetwork for many facts by least squares.

    For each token, with key k (the site's input) and value gradient g, a network gives a pseudo-pair (k̃, g̃), whose
    rank-one step would change the token's value by d = -η (k̃ᵀk) g̃, with a learned step size η per site. The shift
    fits all of these differences, S = argmin |K S - D|² + λ|S|² = (KᵀK + λI)⁻¹ KᵀD (in the orientation fan-in ×
    fan-out), with a learned λ per site. Its meta-gradient is computed in closed form with the same factorisation:
    ∂L/∂D = K M⁻¹ ∂L/∂S and ∂L/∂λ = -<M⁻¹ ∂L/∂S, S>.

    With fewer keys than fan-in, the equivalent dual system is solved, and the edit is stored as factors. Memory grows
    with the number of requests only by their factors, which can be kept on disk. The network runs in chunks, whose
    activations are recomputed in the backward pass. The solve is in float64.

    Args:
        sites: Edit sites: layers (negative ones count from the last; the MLP output projection is edited) or names of
            linear modules. The paper edits the last blocks' second MLP layers.
        rank: Rank of the network's blocks. The authors use 1920 for models of billions of parameters.
        hidden_layers: Number of hidden layers; the network has one more (the authors have two blocks).
        step_size: Initial value of the learned step sizes η (the authors use 1e-6).
        log_ridge: Initial value of the learned log λ (the authors use 0).
        epsilon: Added to the standard deviation of the factors. The authors use the machine epsilon of float32.
        shared: Whether the sites of one shape share a network, as in the paper, or each has its own.
        tokens: "answer" uses the factors of the positions that predict a target token (the authors, for MALMEN), "all"
            those of every token.
        rows_per_chunk: Number of tokens transformed at once (the authors use 1024); does not affect the result.
        factors_on_disk: Keep the factors in temporary files instead of in memory.
        end_token: Whether to append the end-of-text token to every target, in training and editing.
        whitening: See :class:`MEND`. The least squares then weigh a shift by the keys' second moment C in place of the
            identity, S = (KᵀK + λC)⁻¹ KᵀD, as MEMIT does.
    """

    layer = staticmethod(low_rank_gated)

    def __init__(
        self,
        sites: Sequence[int | str] = (-6, -5, -4, -3, -2, -1),
        rank: int = 128,
        hidden_layers: int = 1,
        step_size: float = 1e-6,
        log_ridge: float = 0.0,
        epsilon: float = 1.1920929e-07,
        shared: bool = True,
        tokens: Tokens = "answer",
        rows_per_chunk: int = 1024,
        factors_on_disk: bool = False,
        end_token: bool = False,
        whitening: int = 0,
    ) -> None:
        super().__init__(sites, rank, hidden_layers, step_size, epsilon, shared, tokens, end_token, whitening)
        self.log_ridge = log_ridge
        self.rows_per_chunk, self.factors_on_disk = rows_per_chunk, factors_on_disk
        self.log_ridges = nn.ParameterDict()

    def setup_site(self, site: EditSite) -> None:
        """See :meth:`HypernetworkEditor.setup_site`."""
        super().setup_site(site)
        self.log_ridges[site_key(site.name)] = nn.Parameter(torch.tensor(self.log_ridge))

    def new_store(self, edits: int) -> FactorStore:
        """See :meth:`GradientEditor.new_store`."""
        return FactorStore(edits, self.factors_on_disk)

    def bytes_per_edit(self, model: LanguageModel, groups: Groups) -> int:
        """See :meth:`Editor.bytes_per_edit`: the float64 system and its solution, dense or as factors."""
        encoder, total = self.encoder(model), 0
        texts = [[encoder.encode(request.prompt, request.target) for request in group] for group in groups]
        rows = max(
            sum(len(text.target_ids if self.tokens == "answer" else text.ids) for text in group) for group in texts
        )
        for site in self.edit_sites(model):
            size = min(rows, site.fan_in)
            solution = site.fan_in * site.fan_out if rows >= site.fan_in else rows * (site.fan_in + site.fan_out)
            total += 8 * (size * size + 2 * solution)
        return total

    def propose(self, store: FactorStore) -> Proposal:
        """See :meth:`HypernetworkEditor.propose`."""
        solutions = {site: self._solve(store, site) for site in store.sites}
        leaves = cut([solution.solution for solution in solutions.values()])
        stacked = {
            site: solution.stacked(leaf) for (site, solution), leaf in zip(solutions.items(), leaves, strict=True)
        }

        def carry(gradients: Sequence[Tensor]) -> Tensor:
            parts = [solution.carry(gradient) for solution, gradient in zip(solutions.values(), gradients, strict=True)]
            return torch.stack(parts).sum()

        ridges = {f"ridge/{site}": self.log_ridges[site_key(site)].detach().exp() for site in store.sites}
        return Proposal(stacked, leaves, carry, ridges)

    def _solve(self, store: FactorStore, site: str) -> _Solution:
        differences = _Differences(self, store, site)
        if store.most_rows(site) < store.sizes(site)[0]:
            return _Dual(differences)
        return _Primal(differences)


class _Differences:
    """The value differences of one site.

    Args:
        editor: The editor.
        store: The factors.
        site: The site.
    """

    def __init__(self, editor: MALMEN, store: FactorStore, site: str) -> None:
        self.editor, self.store, self.site = editor, store, site
        self.size = editor.rows_per_chunk
        self.network, self.index = editor.network_of(site)
        self.step_size = editor.step_sizes[site_key(site)]
        self.log_ridge = editor.log_ridges[site_key(site)]

    def chunks(self) -> Iterator[FactorChunk]:
        """Yields the site's factors, chunk by chunk."""
        return self.store.chunks(self.site, self.size)

    def of(self, chunk: FactorChunk) -> Tensor:
        """Computes (N, fan_out) d = -η (k̃ᵀk) g̃ for each row."""
        pseudo_keys, pseudo_gradients = self.network(chunk.x, chunk.delta, self.index)
        strength = (chunk.x * pseudo_keys).sum(-1, keepdim=True)
        differences: Tensor = -self.step_size * strength * pseudo_gradients
        return differences

    def carried(self, gradient_of: Callable[[FactorChunk, slice], Tensor]) -> Tensor:
        """Computes () <∂L/∂D, D>, chunk by chunk.

        Nothing is kept of a chunk: its factors are read again in the backward pass, and its activations and gradient
        are recomputed.

        Args:
            gradient_of: Maps a chunk and its slice of all rows to (N, fan_out) ∂L/∂d.
        """
        total: Tensor = self.step_size.new_zeros(())
        start = 0
        for read in self.store.readers(self.site, self.size):
            end = start + len(read().x)

            def product(read: Callable[[], FactorChunk] = read, rows: slice = slice(start, end)) -> Tensor:
                chunk = read()
                return carried([self.of(chunk)], [gradient_of(chunk, rows)])

            few = self.store.rows(self.site) <= self.size
            result: Tensor = product() if few else checkpoint(product, use_reentrant=False, preserve_rng_state=False)
            total, start = total + result, end
        return total

    def carried_ridge(self, gradient: Tensor) -> Tensor:
        """Returns a () surrogate that propagates ∂L/∂λ into log λ."""
        carrier: Tensor = gradient.to(self.log_ridge) * self.log_ridge.exp()
        return carrier


class _Solution(ABC):
    """The solution of one site's normal equation.

    Args:
        differences: The site's value differences.
    """

    solution: Tensor

    @abstractmethod
    def stacked(self, solution: Tensor) -> StackedDelta:
        """Returns the changes for (a copy of) the solution."""

    @abstractmethod
    def carry(self, gradient: Tensor) -> Tensor:
        """Returns a () surrogate that propagates the solution's gradient into the editor's parameters."""


class _Primal(_Solution):
    """(KᵀK + λI)⁻¹ KᵀD, dense."""

    @torch.no_grad()
    def __init__(self, differences: _Differences) -> None:
        self.differences = differences
        store, site = differences.store, differences.site
        chunks = ((chunk.x, differences.of(chunk), chunk.group) for chunk in differences.chunks())
        self.system = PrimalRidge(chunks, store.edits, differences.log_ridge.exp(), store.sizes(site))
        self.solution = differences.editor.for_inputs(site, self.system.solution.mT).mT

    def stacked(self, solution: Tensor) -> StackedDelta:
        return StackedMatrices(solution)

    def carry(self, gradient: Tensor) -> Tensor:
        gradient = self.differences.editor.whitened(self.differences.site, gradient.mT).mT
        of_values, of_ridge = self.system.gradients(gradient)
        values = self.differences.carried(lambda chunk, rows: of_values(chunk.x, chunk.group))
        return self.differences.carried_ridge(of_ridge) + values


class _Dual(_Solution):
    """Kᵀ (KKᵀ + λI)⁻¹ D, as factors."""

    @torch.no_grad()
    def __init__(self, differences: _Differences) -> None:
        self.differences = differences
        store = differences.store
        whole = store.whole(differences.site)
        self.group, self.slot = whole.group, slots_within_group(whole.group)
        self.keys = pack_rows(whole.x, whole.group, store.edits)
        pieces = [differences.of(chunk) for chunk in differences.chunks()]
        # There are none if every request was left out.
        values = torch.cat(pieces) if pieces else whole.delta
        self.system = DualRidge(self.keys, differences.log_ridge.exp())
        self.solution = self.system.solution(pack_rows(values, whole.group, store.edits))

    def stacked(self, solution: Tensor) -> StackedDelta:
        keys = self.differences.editor.for_inputs(self.differences.site, self.keys)
        return StackedFactors(keys.mT, solution)

    def carry(self, gradient: Tensor) -> Tensor:
        of_packed, of_ridge = self.system.gradients(self.solution, gradient)
        of_values = of_packed[self.group, self.slot]
        values = self.differences.carried(lambda chunk, rows: of_values[rows])
        return self.differences.carried_ridge(of_ridge) + values
