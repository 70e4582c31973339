"""MEND: Model Editor Networks with Gradient Decomposition (Mitchell et al. 2022, arXiv 2110.11309)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_edit.editors.factors import FactorStore
from lightning_edit.editors.gradient import Tokens
from lightning_edit.editors.hypernetwork import HypernetworkEditor, Proposal, site_key
from lightning_edit.edits import StackedFactors
from lightning_edit.functional.low_rank import low_rank_residual
from lightning_edit.functional.packing import pack_rows
from lightning_edit.functional.surrogate import carried, cut


class MEND(HypernetworkEditor):
    """MEND: a hypernetwork turns the fine-tuning gradient of a request into an edit that generalises and is local.

    The gradient of the target's loss at a linear layer is Σ_t x_t δ_tᵀ over the tokens. A network g, shared by the
    sites of one shape, maps each pair of factors to a pseudo-pair, and W' = W - α Σ_t x̃_t δ̃_tᵀ with a learned step
    size α per site. The editor is float32 for any precision of the base model.

    Two details differ from the authors' code in form only: the step is subtracted, as in the paper (they add it and
    learn the sign), and the statistics are updated with all sites of a batch before any of them is transformed.

    Args:
        sites: Edit sites: layers (negative ones count from the last; the MLP output projection is edited) or names of
            linear modules. The paper edits the last three blocks.
        rank: Rank of the hypernetwork's layers. The authors use 1920 for models of billions of parameters; 128 is
            enough for a small one, and keeps the checkpoint small.
        hidden_layers: Number of hidden layers; the network has one more (the authors use 1).
        step_size: Initial value of the learned step sizes α (the authors use 1e-4).
        epsilon: Added to the standard deviation of the factors (the authors use 1e-7).
        shared: Whether the sites of one shape share a network, as in the paper, or each has its own, with its own
            statistics. Sharing saves parameters; separate networks of a lower rank learn faster, because the neurons
            of different layers have nothing in common.
        end_token: Whether to append the end-of-text token to every target, in training and editing, so that the edited
            model ends its answer (the authors train on the target alone).
        whitening: Number of principal directions along which the keys are whitened, fitted before training at the
            answer positions of its texts; 0 for none, as in the paper, which normalises each coordinate separately. At
            the last token of a prompt, two questions about one relation have nearly the same keys, mostly because of
            directions common to all prompts (see benchmarks/README.md for the effect).
        tokens: "all" uses the factors of every token, as in the paper; "answer" those of the positions that predict a
            target token, which makes edits smaller.
    """

    layer = staticmethod(low_rank_residual)

    def __init__(
        self,
        sites: Sequence[int | str] = (-6, -5, -4, -3, -2, -1),
        rank: int = 128,
        hidden_layers: int = 1,
        step_size: float = 1e-4,
        epsilon: float = 1e-7,
        shared: bool = True,
        end_token: bool = False,
        whitening: int = 0,
        tokens: Tokens = "all",
    ) -> None:
        super().__init__(sites, rank, hidden_layers, step_size, epsilon, shared, tokens, end_token, whitening)

    def propose(self, store: FactorStore) -> Proposal:
        """See :meth:`HypernetworkEditor.propose`."""
        tensors: list[Tensor] = []
        for site in store.sites:
            network, index = self.network_of(site)
            factors = store.whole(site)
            pseudo_x, pseudo_delta = network(factors.x, factors.delta, index)
            step = -self.step_sizes[site_key(site)] * pseudo_delta
            pseudo_x = self.for_inputs(site, pseudo_x)
            tensors.append(pack_rows(pseudo_x, factors.group, store.edits).transpose(1, 2))
            tensors.append(pack_rows(step, factors.group, store.edits))
        leaves = cut(tensors)
        pairs = zip(store.sites, leaves[::2], leaves[1::2], strict=True)
        stacked = {site: StackedFactors(a, b) for site, a, b in pairs}
        measures = {}
        for site, change in stacked.items():
            measures[f"factor_norm/{site}/x"] = change.a.detach().norm(dim=1).mean()
            measures[f"factor_norm/{site}/delta"] = change.b.detach().norm(dim=2).mean()
        return Proposal(stacked, leaves, lambda gradients: carried(tensors, gradients), measures)
