"""Fine-tuning of single matrices: FT-L, FT-M and LocFT-BF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.tuning import (
    Tuned,
    TuningSettings,
    grouped_term,
    names_of,
    problems_of,
    tune,
    tuning_texts,
)
from lightning_edit.edits import EditSequence, StackedMatrices, WeightChanges
from lightning_edit.edits.hooks import Term
from lightning_edit.models.cached_texts import TextBatch
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite

FINE_TUNING = TuningSettings()
"""25 passes of Adam at 5e-4, as in the published runs."""


class FineTuning(Editor):
    """Fine-tunes whole matrices on the requests with Adam, optionally with a bound on the change.

    W' = argmin over W of -log p_W(target | prompt), with |W' - W| ≤ ε elementwise. Three published methods are special
    cases:

    - FT-L (Meng et al. 2022, arXiv 2202.05262, appendix E): every target token is scored at the prompt's last position
      (``scored: prompt_last``), ε = 5e-4 in layer 0 of GPT-2 XL;
    - FT-M (Zhang et al. 2024, arXiv 2401.01286): the target is scored under teacher forcing, without ε, in layer 21 of
      Llama-2 7B;
    - LocFT-BF (arXiv 2509.22072): all edits at once, shuffled in mini-batches of 100 before each pass, with the
      end-of-text token after every target.

    Args:
        sites: Matrices to tune: layers (negative ones count from the last; the MLP output projection is tuned) or names
            of linear modules.
        norm_constraint: ε, the largest change of an element; unlimited if None.
        tuning: How the requests are fitted. The published runs take 25 passes with a learning rate of 5e-4.
        contradictions: How to handle requests of one edit with the same prompt and different targets.
    """

    capabilities = Capabilities(needs_grad=True)

    def __init__(
        self,
        sites: Sequence[int | str] = (-8,),
        norm_constraint: float | None = None,
        tuning: TuningSettings = FINE_TUNING,
        contradictions: Contradictions = "error",
    ) -> None:
        super().__init__()
        ranges.above(0, "editor", norm_constraint=norm_constraint)
        ranges.not_empty("editor", sites=sites)
        self.sites, self.norm_constraint = list(sites), norm_constraint
        self.tuning, self.contradictions = tuning, contradictions

    def edit_sites(self, model: LanguageModel) -> list[EditSite]:
        """Returns the tuned matrices in ``model``, lowest layer first."""
        return model.layer_map.sites(self.sites)

    def lowest_layer(self, model: LanguageModel) -> int:
        """See :meth:`Editor.lowest_layer`."""
        return self.edit_sites(model)[0].layer

    def bytes_per_edit(self, model: LanguageModel, groups: Groups) -> int:
        """See :meth:`Editor.bytes_per_edit`: float32 matrices with gradients, Adam's moments and a copy."""
        return sum(5 * 4 * site.fan_in * site.fan_out for site in self.edit_sites(model))

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.edit_sites(model)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        tuned = _Matrices(self.edit_sites(model), len(groups), self.norm_constraint)
        texts = tuning_texts(model, groups, self.tuning)
        failed = tune(model, texts, names_of(groups), tuned, self.lowest_layer(model), self.tuning, "fine-tuning")
        return GroupChanges(WeightChanges(tuned.stacked()), problems_of(failed, groups))


class _Matrices(Tuned):
    """A dense change of every site for each edit."""

    def __init__(self, sites: Sequence[EditSite], edits: int, bound: float | None) -> None:
        super().__init__(
            [
                [
                    torch.zeros(site.fan_in, site.fan_out, device=site.weight.device, requires_grad=True)
                    for site in sites
                ]
                for _ in range(edits)
            ]
        )
        self.names, self.bound = [site.name for site in sites], bound

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        return {
            name: grouped_term([matrices[index : index + 1] for matrices in self.parameters], rows)
            for index, name in enumerate(self.names)
        }

    @torch.no_grad()
    def after_step(self, edit: int, epoch: int) -> None:
        if self.bound is not None:
            for matrix in self.parameters[edit]:
                matrix.clamp_(-self.bound, self.bound)

    @torch.no_grad()
    def stacked(self) -> dict[str, StackedMatrices]:
        """Stacks the changes of all edits, by site name."""
        columns = zip(*self.parameters, strict=True)
        return {
            name: StackedMatrices(torch.stack([matrix.detach() for matrix in column]))
            for name, column in zip(self.names, columns, strict=True)
        }
