"""MELO: Neuron-Indexed Dynamic LoRA (Yu et al. 2024, arXiv 2312.11795)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.clusters import CENTRE, KEY, RADIUS, BlockResponder, Clusters
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.lora import Adapters
from lightning_edit.editors.tuning import TuningSettings, names_of, tune, tuning_texts
from lightning_edit.edits import EditSequence, Memory, RoutedChanges, StackedFactors
from lightning_edit.edits.hidden_states import prompt_states
from lightning_edit.edits.memory import named_requests
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.records import EditRequest

MELO_TUNING = TuningSettings(steps=50, learning_rate=1e-3, skip_below=0.0, stop_below=0.0)
"""The authors' settings."""


class MELO(Editor):
    """MELO: clusters of hidden states choose which block of a LoRA adapter is active.

    Requests are trained in blocks of a few; each block has its own ranks at the adapted sites. A prompt whose state at
    the key site falls into a cluster is answered with the block of the cluster's closest key; all others by the
    unedited model. (Keys are read at the prompt's last token. The authors' code reads them after the target, which free
    generation does not have. A cluster that lost all its keys to conflicts is dropped; the authors keep its centre.)

    Args:
        key_site: The layer (its MLP output projection) or linear module whose output is the key. The authors take
            h[35].mlp.c_fc of GPT-2 XL.
        sites: The adapted layers or linear modules, in blocks above the key's; the authors take c_fc of the next two.
        radius: ε₀, the radius of a new cluster (the authors' 0.5 for GPT-2 XL; it depends on the model's scale).
        rank: Ranks of a block (the authors' 2).
        edits_per_block: Requests that share a block (the authors' 4).
        scale: Factor of the adapter's output. The authors' code multiplies by the number of blocks, 350.
        tuning: How blocks are trained. The authors take 50 steps with a learning rate of 1e-3.
        seed: Seed of the initialisation.
        contradictions: What to do with requests of one edit that have the same prompt and another target.
    """

    capabilities = Capabilities(depends="model", needs_grad=True, mergeable=False)

    def __init__(
        self,
        key_site: int | str = -6,
        sites: Sequence[int | str] = (-5, -4),
        radius: float = 0.5,
        rank: int = 2,
        edits_per_block: int = 4,
        scale: float = 350.0,
        tuning: TuningSettings = MELO_TUNING,
        seed: int = 0,
        contradictions: Contradictions = "last",
    ) -> None:
        super().__init__()
        ranges.above(0, "editor", radius=radius, scale=scale)
        ranges.at_least(1, "editor", rank=rank, edits_per_block=edits_per_block)
        ranges.not_empty("editor", sites=sites)
        self.key_site, self.sites, self.radius, self.rank = key_site, list(sites), radius, rank
        self.edits_per_block, self.scale, self.tuning, self.seed = edits_per_block, scale, tuning, seed
        self.contradictions = contradictions

    def edit_sites(self, model: LanguageModel) -> list[EditSite]:
        """The adapted sites in ``model``, lowest layer first."""
        return model.layer_map.sites(self.sites)

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.edit_sites(model)
        model.layer_map.sites([self.key_site])

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        sites, [key_site] = self.edit_sites(model), model.layer_map.sites([self.key_site])
        blocks = [
            (edit, list(group[start : start + self.edits_per_block]))
            for edit, group in enumerate(groups)
            for start in range(0, len(group), self.edits_per_block)
        ]
        requests = [request for _, block in blocks for request in block]
        block_of = [number for number, (_, block) in enumerate(blocks) for _ in block]
        keys = prompt_states(model, [request.prompt for request in requests], key_site.name, "output").float()
        adapters = Adapters(sites, len(blocks), self.rank, self.scale, 0.0, self.seed)
        trained_blocks = [block for _, block in blocks]
        texts = tuning_texts(model, trained_blocks, self.tuning)
        failed = tune(model, texts, names_of(trained_blocks), adapters, sites[0].layer, self.tuning, "blocks")
        stacked = adapters.stacked()
        router = Clusters(key_site.name, self.radius)
        memories = []
        for edit in range(len(groups)):
            places = [p for p, block in enumerate(block_of) if blocks[block][0] == edit and block not in failed]
            memories.append(self._memory(router, requests, keys, stacked, block_of, places))
        problems = {place: failed[block] for place, block in enumerate(block_of) if block in failed}
        return GroupChanges(RoutedChanges(memories, router, BlockResponder([site.name for site in sites])), problems)

    def _memory(
        self,
        router: Clusters,
        requests: Sequence[EditRequest],
        keys: Tensor,
        stacked: Mapping[str, StackedFactors],
        block_of: Sequence[int],
        places: Sequence[int],
    ) -> Memory:
        tensors = {KEY: keys[places], CENTRE: keys[places], RADIUS: keys.new_full((len(places),), self.radius)}
        blocks = [block_of[place] for place in places]
        for site, factors in stacked.items():
            tensors |= {f"a/{site}": factors.a[blocks], f"b/{site}": factors.b[blocks]}
        named = named_requests([requests[place] for place in places])
        items = Memory(tuple((request,) for request in named), tensors)
        return router.join(items.select([]), items)
