"""WISE: Rethinking the Knowledge Memory for Lifelong Model Editing (Wang et al. 2024, arXiv 2405.14768)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups, name_of
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.prompts import BARE, Contexts, Sampling, sampled_contexts
from lightning_edit.editors.tuning import Tuned, TuningSettings, TuningText, grouped_term, problems_of, tune
from lightning_edit.edits import EditSequence, Match, Memory, RoutedChanges, Router, SiteResponder, StackedMatrices
from lightning_edit.edits.hooks import Term
from lightning_edit.edits.routed import named_requests
from lightning_edit.functional.ties import ties_merge
from lightning_edit.models.cached_texts import TextBatch
from lightning_edit.models.language_model import BatchRows, LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.recording import Tap, record_all
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import EncodedText

MATRIX, THRESHOLD, SHARDS = "matrix", "threshold", "shards"
WISE_TUNING = TuningSettings(steps=70, learning_rate=1.0, skip_below=0.0, stop_below=0.02)
"""The authors' settings for Llama-2 7B."""
WISE_SAMPLES = Sampling(("I", "You", "Because", "Yes", "Q: ") * 2, (5,) * 5 + (10,) * 5, apart=False)
"""The authors' contexts: ten short samples of the model, in front of the prompt."""


@dataclass(frozen=True)
class Margins:
    """The margins of the activation loss (equation 4 of the paper).

    Args:
        outside: α, which the activation of unrelated text should stay below (5 for Llama-2 7B).
        inside: β, which that of the edited prompt should exceed (20).
        between: γ, by which the two should differ (10).
    """

    outside: float = 5.0
    inside: float = 20.0
    between: float = 10.0


def activation_gap(activation: Any, output: Tensor, change: Tensor) -> Tensor:
    """‖act(W a) - act(W' a)‖₂ for each position: outputs (…, D) of the main memory, and what the side memory adds."""
    gap: Tensor = (activation(output) - activation(output + change)).norm(dim=-1)
    return gap


class GapRouter(Router):
    """Routes a prompt to the side memory whose activation gap is largest, if it exceeds that memory's threshold.

    The gap is the mean over the prompt's tokens. The target does not take part.

    Args:
        site: Name of the site that the side memories are copies of.
        activation: Name of the activation function, as in transformers.
        merge_every: Side memories are merged by TIES once there are so many single ones.
        density: Share of the elements that TIES keeps.
    """

    def __init__(self, site: str, activation: str, merge_every: int, density: float) -> None:
        super().__init__()
        self.site, self.activation, self.merge_every, self.density = site, activation, merge_every, density

    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """See :meth:`Router.match`; closeness is the gap."""
        gaps = torch.zeros(len(prompts), len(memory))
        states = site_states(model, [model.encoder.encode(prompt) for prompt in prompts], self.site)
        for row, (x, output) in enumerate(states):
            for item in allowed[row].nonzero()[:, 0].tolist():
                matrix = memory.tensors[MATRIX][item].to(x)
                gaps[row, item] = activation_gap(ACT2FN[self.activation], output, x @ matrix).mean()
        return Match(gaps, gaps >= memory.tensors[THRESHOLD].cpu())

    def join(self, first: Memory, second: Memory) -> Memory:
        """See :meth:`Router.join`; the oldest single memories are merged once there are enough of them."""
        joined = super().join(first, second)
        single = (joined.tensors[SHARDS] == 1).nonzero()[:, 0].tolist()
        if len(single) < self.merge_every:
            return joined
        chosen = single[: self.merge_every]
        shards = joined.select(chosen)
        merged = Memory(
            (shards.all_requests,),
            {
                MATRIX: ties_merge(shards.tensors[MATRIX], self.density)[None],
                THRESHOLD: shards.tensors[THRESHOLD].min()[None],
                SHARDS: torch.tensor([len(chosen)]),
            },
        )
        return Memory.concatenated(joined.select([p for p in range(len(joined)) if p not in chosen]), merged)


class SideMemory(SiteResponder):
    """Applies the side memory that a row was routed to.

    Args:
        site: Name of the site.
    """

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def terms(
        self, model: LanguageModel, memory: Memory, items: Tensor, batch: BatchRows, repeats: int
    ) -> Mapping[str, Term]:
        """See :meth:`SiteResponder.terms`."""
        return {self.site: StackedMatrices(memory.tensors[MATRIX].to(model.device)).term(items, repeats)}


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

    capabilities = Capabilities(depends=False, needs_grad=True, mergeable=False)

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
        self.site, self.mask_ratio, self.margins, self.activation_ratio = site, mask_ratio, margins, activation_ratio
        self.norm_constraint, self.merge_every, self.density = norm_constraint, merge_every, density
        self.unrelated = None if unrelated is None else list(unrelated)
        self.contexts = None if contexts is None else list(Contexts((tuple(contexts),)).templates)
        self.tuning, self.seed, self.contradictions = tuning, seed, contradictions
        self._sampled: tuple[str, list[str]] | None = None

    def edit_site(self, model: LanguageModel) -> EditSite:
        """The copied matrix in ``model``."""
        return model.layer_map.sites([self.site])[0]

    def bytes_per_edit(self, model: LanguageModel) -> int:
        """See :meth:`Editor.bytes_per_edit`: a float32 matrix."""
        site = self.edit_site(model)
        return 4 * site.fan_in * site.fan_out

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
        memories = _SideMemories(self, model, site, groups)
        failed: dict[int, str] = {}
        for turn in range(max(map(len, groups))):
            taught = [edit for edit, group in enumerate(groups) if turn < len(group) and edit not in failed]
            failed |= memories.learn(taught, turn)
        changes = [memories.memory(edit, group, edit in failed) for edit, group in enumerate(groups)]
        router = GapRouter(site.name, activation_name(model), self.merge_every, self.density)
        return GroupChanges(RoutedChanges(changes, router, SideMemory(site.name)), problems_of(failed, groups))

    def rows_of(self, model: LanguageModel, request: EditRequest) -> list[TuningText]:
        """A request with its target in every context."""
        texts = [model.encoder.encode(t.replace(BARE, request.prompt), request.target) for t in self._contexts()]
        return [TuningText(text, text.target_ids) for text in texts]

    def unrelated_text(self, model: LanguageModel, number: int) -> EncodedText:
        """The unrelated text of a request."""
        texts = self._unrelated()
        return model.encoder.encode(texts[number % len(texts)])


class _SideMemories(Tuned):
    """ΔW of each edit, its mask, and the states by which its gap is measured."""

    def __init__(self, editor: WISE, model: LanguageModel, site: EditSite, groups: Groups) -> None:
        shape, device = (site.fan_in, site.fan_out), site.weight.device
        super().__init__([[torch.zeros(shape, device=device, requires_grad=True)] for _ in groups])
        self.editor, self.model, self.site, self.groups = editor, model, site, groups
        self.activation = ACT2FN[activation_name(model)]
        self.masks = [self._mask(group[0], shape).to(device) for group in groups]
        self.inside: list[list[tuple[Tensor, Tensor]]] = [[] for _ in groups]
        self.outside: list[tuple[Tensor, Tensor]] = []

    def _mask(self, request: EditRequest, shape: tuple[int, int]) -> Tensor:
        seed = sum(request.prompt.encode()) * 1009 + self.editor.seed
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < self.editor.mask_ratio

    def learn(self, edits: Sequence[int], turn: int) -> dict[int, str]:
        """Trains the ``turn``-th request of some edits, side by side."""
        requests = [self.groups[edit][turn] for edit in edits]
        rows = [self.editor.rows_of(self.model, request) for request in requests]
        flat = [one.text for group in rows for one in group]
        states = site_states(self.model, flat, self.site.name)
        count = len(rows[0]) if rows else 0
        for place, edit in enumerate(edits):
            self.inside[edit] = states[place * count : (place + 1) * count]
        unrelated = [self.editor.unrelated_text(self.model, edit + turn) for edit in edits]
        self.outside = site_states(self.model, unrelated, self.site.name)
        view = _View(self, edits)
        tuning, layer = self.editor.tuning, self.site.layer
        failed = tune(
            self.model, rows, [name_of(request) for request in requests], view, layer, tuning, "side memories"
        )
        return {edits[place]: problem for place, problem in failed.items()}

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        return {self.site.name: grouped_term(self.parameters, rows)}

    def gap(self, edit: int, states: tuple[Tensor, Tensor]) -> Tensor:
        """() mean gap over a text's tokens."""
        x, output = states
        return activation_gap(self.activation, output, x @ self.parameters[edit][0]).mean()

    @torch.no_grad()
    def memory(self, edit: int, group: Sequence[EditRequest], failed: bool) -> Memory:
        """The side memory of an edit, with the smallest gap of its prompts as the threshold."""
        if failed:
            return self._memory(edit, (), torch.zeros(0))
        prompts = [self.model.encoder.encode(request.prompt) for request in group]
        gaps = [float(self.gap(edit, states)) for states in site_states(self.model, prompts, self.site.name)]
        threshold = torch.tensor([self.editor.activation_ratio * min(gaps)])
        return self._memory(edit, (named_requests(group),), threshold)

    def _memory(self, edit: int, requests: tuple[tuple[EditRequest, ...], ...], threshold: Tensor) -> Memory:
        matrix = self.parameters[edit][0].detach()[None][: len(requests)]
        shards = torch.ones(len(requests), dtype=torch.int64)
        return Memory(requests, {MATRIX: matrix, THRESHOLD: threshold, SHARDS: shards})


class _View(Tuned):
    """Some of the side memories, counted from zero."""

    def __init__(self, memories: _SideMemories, edits: Sequence[int]) -> None:
        super().__init__([memories.parameters[edit] for edit in edits])
        self.memories, self.edits = memories, list(edits)

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        return self.memories.terms([(self.edits[edit], places) for edit, places in rows], batch)

    def penalty(self, edit: int) -> Tensor:
        memories, margins, number = self.memories, self.memories.editor.margins, self.edits[edit]
        inside = torch.stack([memories.gap(number, states) for states in memories.inside[number]])
        outside = memories.gap(number, memories.outside[edit])[None]
        return (
            positive_mean(outside - inside + margins.between)
            + positive_mean(outside - margins.outside)
            + positive_mean(margins.inside - inside)
        )

    def before_step(self, edit: int) -> None:
        gradient = self.parameters[edit][0].grad
        if gradient is not None:
            gradient *= self.memories.masks[self.edits[edit]]

    @torch.no_grad()
    def after_step(self, edit: int, step: int) -> None:
        bound = self.memories.editor.norm_constraint
        self.parameters[edit][0].clamp_(-bound, bound)

    def optimizer(self, parameters: Sequence[Tensor], settings: TuningSettings) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay)


def positive_mean(values: Tensor) -> Tensor:
    """() the mean of the positive values; zero where there is none."""
    positive = values > 0
    return (values * positive).sum() / positive.sum().clamp(min=1)


def activation_name(model: LanguageModel) -> str:
    """The name of the model's activation function, as in transformers."""
    config: Any = model.model.config.get_text_config()
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            return value
    return "silu"


def site_states(model: LanguageModel, texts: Sequence[EncodedText], site: str) -> list[tuple[Tensor, Tensor]]:
    """For each text the (T, fan_in) inputs and (T, fan_out) outputs of a site at all of its tokens, in float32."""
    where = model.layer_map.named_site(site)
    taps = {side: Tap(where.module, side, where.layer) for side in ("input", "output")}
    seen = record_all(model, texts, taps)
    return list(zip(seen["input"], seen["output"], strict=True))
