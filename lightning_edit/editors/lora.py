"""Low-rank adapters as edits: LoRA (Hu et al. 2022, arXiv 2106.09685) and AdaLoRA (Zhang et al. 2023, 2303.10512)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.tuning import Tuned, TuningSettings, names_of, problems_of, tune, tuning_texts
from lightning_edit.edits import EditSequence, StackedFactors, WeightChanges
from lightning_edit.edits.hooks import Term
from lightning_edit.models.cached_texts import TextBatch
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite

LORA_TUNING = TuningSettings(steps=70, learning_rate=5e-3, skip_below=0.0, stop_below=0.0)
"""KnowEdit's settings for LoRA and AdaLoRA on Llama-2 7B: 70 passes at 5e-3, without an early stop."""


class Adapters(Tuned):
    """A LoRA adapter at every site for each edit: ΔW = scale · A B.

    Args:
        sites: The sites.
        edits: Number of edits.
        rank: Columns of A, (fan_in, rank), and rows of B, (rank, fan_out).
        scale: Factor of the product.
        dropout: Share of the inputs that is dropped while training.
        seed: Seed of the initialisation and of dropout, the same for every edit.
    """

    def __init__(
        self, sites: Sequence[EditSite], edits: int, rank: int, scale: float, dropout: float, seed: int
    ) -> None:
        self.sites, self.rank, self.scale, self.dropout = list(sites), rank, scale, dropout
        # Every edit starts alike and draws its own masks, so the result does not depend on the other edits of a batch.
        super().__init__([self.initial(torch.Generator().manual_seed(seed)) for _ in range(edits)])
        self._generators = [torch.Generator().manual_seed(seed + 1) for _ in range(edits)]

    def initial(self, generator: torch.Generator) -> list[Tensor]:
        """The tensors of one edit, site by site: A uniform within ±1/√fan_in, as in PEFT, and B zero."""
        tensors = []
        for site in self.sites:
            a = (2 * torch.rand(site.fan_in, self.rank, generator=generator) - 1) / math.sqrt(site.fan_in)
            tensors += [a, torch.zeros(self.rank, site.fan_out)]
        return [
            tensor.to(site.weight.device).requires_grad_()
            for site, pair in zip(self.sites, zip(tensors[::2], tensors[1::2], strict=True), strict=True)
            for tensor in pair
        ]

    def factors(self, edit: int, site: int) -> tuple[Tensor, Tensor]:
        """(fan_in, rank) and (rank, fan_out) whose product is ΔW."""
        a, b = self.parameters[edit][2 * site : 2 * site + 2]
        return a, self.scale * b

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        """See :meth:`Tuned.terms`."""
        lengths = batch.tokens.attention_mask.sum(1).tolist()
        return {site.name: self._term(index, rows, lengths) for index, site in enumerate(self.sites)}

    def _term(self, site: int, rows: Sequence[tuple[int, slice]], lengths: Sequence[int]) -> Term:
        pairs = [self.factors(edit, site) for edit, _ in rows]
        index = torch.tensor(
            [place for place, (_, places) in enumerate(rows) for _ in range(places.stop - places.start)]
        )

        def term(x: Tensor, output: Tensor) -> Tensor:
            a, b = (torch.stack([pair[side] for pair in pairs]) for side in (0, 1))
            split = x.reshape(len(index), -1, x.shape[-1]).to(a.dtype)
            if self.dropout:
                split = split * torch.cat([self._mask(edit, split[places], lengths[places]) for edit, places in rows])
            if len(index) != len(pairs):
                a, b = a[index], b[index]
            return torch.bmm(torch.bmm(split, a), b).reshape(*x.shape[:-1], -1)

        return term

    def _mask(self, edit: int, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Draws a mask for each token of each row, but not for padding, which depends on other edits of the batch."""
        mask = torch.ones(x.shape)
        for row, length in zip(mask, lengths, strict=True):
            kept = torch.rand(length, x.shape[-1], generator=self._generators[edit]) >= self.dropout
            row[:length] = kept / (1 - self.dropout)
        return mask.to(x)

    @torch.no_grad()
    def stacked(self) -> dict[str, StackedFactors]:
        """Stacks the changes of all edits, by site name."""
        stacked = {}
        for index, site in enumerate(self.sites):
            pairs = [self.factors(edit, index) for edit in range(len(self.parameters))]
            a, b = (torch.stack([pair[side].detach() for pair in pairs]) for side in (0, 1))
            stacked[site.name] = StackedFactors(a, b)
        return stacked


class LoRA(Editor):
    """LoRA: a low-rank adapter ΔW = (α/r) A B is trained on the requests; dropout is off when the edit is applied.

    Args:
        targets: Endings of the names of the adapted linear maps, such as "q_proj".
        layers: Layers that are adapted; all if None.
        rank: Rank r.
        alpha: α.
        dropout: Share of the inputs that is dropped while training. KnowEdit's toolkit sets 0.1.
        tuning: How the requests are fitted.
        seed: Seed of the initialisation and of dropout.
        contradictions: What to do with requests of one edit that have the same prompt and another target.
    """

    capabilities = Capabilities(needs_grad=True)

    def __init__(
        self,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        layers: Sequence[int] | None = None,
        rank: int = 8,
        alpha: float = 32.0,
        dropout: float = 0.0,
        tuning: TuningSettings = LORA_TUNING,
        seed: int = 0,
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__()
        ranges.layer_numbers("editor", layers)
        ranges.not_empty("editor", targets=targets)
        ranges.at_least(1, "editor", rank=rank)
        ranges.above(0, "editor", alpha=alpha)
        ranges.between(0, 1, "editor", dropout=dropout)
        self.targets, self.layers = list(targets), None if layers is None else list(layers)
        self.rank, self.alpha, self.dropout, self.tuning = rank, alpha, dropout, tuning
        self.seed, self.contradictions = seed, contradictions

    def edit_sites(self, model: LanguageModel) -> list[EditSite]:
        """The adapted linear maps in ``model``, lowest layer first."""
        return model.layer_map.sites_ending_in(self.targets, self.layers)

    def lowest_layer(self, model: LanguageModel) -> int:
        """See :meth:`Editor.lowest_layer`."""
        return self.edit_sites(model)[0].layer

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.edit_sites(model)

    def adapters(self, sites: Sequence[EditSite], edits: int) -> Adapters:
        """Creates the trainable adapters of all edits."""
        return Adapters(sites, edits, self.rank, self.alpha / self.rank, self.dropout, self.seed)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        adapters = self.adapters(self.edit_sites(model), len(groups))
        texts = tuning_texts(model, groups, self.tuning)
        failed = tune(model, texts, names_of(groups), adapters, self.lowest_layer(model), self.tuning, "adapters")
        return GroupChanges(WeightChanges(adapters.stacked()), problems_of(failed, groups))
