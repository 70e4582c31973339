"""WISE: Rethinking the Knowledge Memory for Lifelong Model Editing (Wang et al. 2024, arXiv 2405.14768)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.prompts import BARE, Contexts, Sampling, sampled_contexts
from lightning_edit.editors.side_memory import GapRouter, SideMemory, activation_name
from lightning_edit.editors.side_memory_training import Margins, SideMemories, SideMemorySettings
from lightning_edit.editors.tuning import TuningSettings, problems_of
from lightning_edit.edits import EditSequence, RoutedChanges
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite

WISE_TUNING = TuningSettings(steps=70, learning_rate=1.0, skip_below=0.0, stop_below=0.02)
"""The authors' settings for Llama-2 7B."""
WISE_SAMPLES = Sampling(("I", "You", "Because", "Yes", "Q: ") * 2, (5,) * 5 + (10,) * 5, separate_bare_prompt=False)
"""The authors' contexts: ten short samples of the model, in front of the prompt."""


class WISE(Editor):
    """WISE: edits live in a side copy of one matrix, and an activation gap decides which prompts read it.

    The side memory W' = W + ΔW is trained by gradient descent on -log p(target | context, prompt) plus hinges on the
    gap Δ = ‖act(W a) - act(W' a)‖: [Δ_out - Δ_in + γ]₊ + [Δ_out - α]₊ + [β - Δ_in]₊, in being the edited prompt in
    sampled contexts and out an unrelated text. Only a random share ρ of the elements takes a gradient. A prompt reads
    the side memory if its mean gap reaches a share of the smallest gap of the memory's own prompts.

    The requests of one edit are trained one after another in one side memory. In a sequence every edit has a side
    memory of its own; TIES merges them, ``merge_every`` at a time, and the one with the largest gap is retrieved.
    (Gaps are compared on prompts alone; the authors' code also looks at the target under teacher forcing.)

    Args:
        site: The layer (its MLP output projection) or linear module that is copied; 27 of 32 for Llama-2 7B.
        mask_ratio: ρ (the authors' 0.2).
        margins: α, β and γ.
        activation_ratio: Share of the smallest gap that a prompt has to reach (the authors' 0.88 for Llama-2).
        norm_constraint: Largest change of an element (the authors' 1).
        merge_every: Side memories that are merged into one. The authors merge two memories of 500 edits.
        density: Share of the elements that TIES keeps (the authors' 0.53).
        unrelated: Texts that stand for everything else; sampled from the model if None. The authors take training
            prompts of the benchmark.
        contexts: Texts with "{}" in place of the prompt, the bare one first; sampled from the model if None.
        tuning: How ΔW is trained. The authors take 70 steps of plain gradient descent with a learning rate of 1.
        seed: Seed of masks and samples.
        contradictions: What to do with requests of one edit that have the same prompt and another target.
    """

    capabilities = Capabilities(depends="model", needs_grad=True, mergeable=False)

    def __init__(
        self,
        site: int | str = -5,
        mask_ratio: float = 0.2,
        margins: Margins = Margins(),
        activation_ratio: float = 0.88,
        norm_constraint: float = 1.0,
        merge_every: int = 1000,
        density: float = 0.53,
        unrelated: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        tuning: TuningSettings = WISE_TUNING,
        seed: int = 0,
        contradictions: Contradictions = "last",
    ) -> None:
        super().__init__()
        ranges.above(0, "editor", mask_ratio=mask_ratio, norm_constraint=norm_constraint, density=density)
        ranges.at_least(0, "editor", activation_ratio=activation_ratio)
        ranges.at_least(2, "editor", merge_every=merge_every)
        if unrelated is not None:
            ranges.not_empty("editor", unrelated=unrelated)
        self.site, self.mask_ratio, self.margins, self.activation_ratio = site, mask_ratio, margins, activation_ratio
        self.norm_constraint, self.merge_every, self.density = norm_constraint, merge_every, density
        self.unrelated = None if unrelated is None else list(unrelated)
        self.contexts = None if contexts is None else list(Contexts((tuple(contexts),)).templates)
        self.tuning, self.seed, self.contradictions = tuning, seed, contradictions
        self._sampled: tuple[str, list[str]] | None = None

    def edit_site(self, model: LanguageModel) -> EditSite:
        """The copied matrix in ``model``."""
        return model.layer_map.sites([self.site])[0]

    def bytes_per_edit(self, model: LanguageModel, groups: Groups) -> int:
        """See :meth:`Editor.bytes_per_edit`: a float32 matrix with gradient and copy, and a mask of bytes."""
        site = self.edit_site(model)
        return (3 * 4 + 1) * site.fan_in * site.fan_out

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.edit_site(model)

    def prepare(self, model: LanguageModel) -> None:
        """See :meth:`Editor.prepare`: contexts are sampled from the unedited model."""
        digest = model.fingerprint.digest
        if self._sampled is None or self._sampled[0] != digest:
            self._sampled = digest, sampled_contexts(model, WISE_SAMPLES, self.seed).templates

    def findings(self, model: LanguageModel) -> dict[str, Any]:
        """See :meth:`Editor.findings`: contexts and unrelated texts."""
        self.prepare(model)
        return {"contexts": self._contexts(), "unrelated": self._unrelated()}

    def _contexts(self) -> list[str]:
        return self.contexts if self.contexts is not None else list(self._sampled[1] if self._sampled else [BARE])

    def _unrelated(self) -> list[str]:
        if self.unrelated is not None:
            return self.unrelated
        return [text.replace(BARE, "").strip() for text in (self._sampled[1] if self._sampled else [])[1:]]

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        site = self.edit_site(model)
        settings = SideMemorySettings(self.mask_ratio, self.margins, self.norm_constraint, self.tuning, self.seed)
        memories = SideMemories(model, site, groups, settings, self._contexts(), self._unrelated())
        failed: dict[int, str] = {}
        for turn in range(max(map(len, groups))):
            trained = [edit for edit, group in enumerate(groups) if turn < len(group) and edit not in failed]
            failed |= memories.learn(trained, turn)
        changes = [memories.memory(edit, self.activation_ratio) for edit in range(len(groups))]
        router = GapRouter(site.name, activation_name(model), self.merge_every, self.density)
        return GroupChanges(RoutedChanges(changes, router, SideMemory(site.name)), problems_of(failed, groups))
