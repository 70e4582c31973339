"""GRACE: General Retrieval Adaptors for Continual Editing (Hartvigsen et al. 2023, arXiv 2211.11031)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_edit import ranges
from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.codebook import KEY, RADIUS, VALUE, Codebook, Replacement, ValueResponder, replacing
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.editors.tuning import Tuned, TuningSettings, names_of, problems_of, tune, tuning_texts
from lightning_edit.edits import EditSequence, Memory, RoutedChanges
from lightning_edit.edits.hidden_states import prompt_states
from lightning_edit.edits.hooks import Term
from lightning_edit.edits.memory import named_requests
from lightning_edit.edits.rows import split_rows
from lightning_edit.models.cached_texts import TextBatch
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.passes import BatchRows

GRACE_TUNING = TuningSettings(steps=100, learning_rate=1.0, skip_below=0.0, stop_below=0.0)
"""The authors' settings."""


class GRACE(Editor):
    """GRACE: a codebook at one layer; a prompt close to a remembered one gets a trained value in place of its output.

    The key k is the site's input at the prompt's last token, the value v is trained by Adam on -log p(target | prompt)
    with v in place of the site's output. A prompt whose state lies within the radius ε of its closest key gets that
    key's value; all others are answered by the unedited model. (The authors' code keys on the first target token, which
    free generation cannot; here keys are those of the prompt alone. Where a new key joins one with the same target, the
    authors train the old value further; here it stays.)

    Args:
        site: The layer (its MLP output projection) or the linear module whose output is replaced. The authors take
            h[35].mlp.c_fc of GPT-2 XL.
        radius: ε₀, the deferral radius of a new key (the authors' 1).
        replacement: "replace_prompt" replaces the output at all tokens of the prompt, "replace_last" from its last
            token on, "replace_all" everywhere.
        start: "cold" begins with values drawn from [0, 1), "warm" with the site's own output.
        tuning: How values are trained. The authors take 100 steps with a learning rate of 1.
        seed: Seed of a cold start.
        contradictions: What to do with requests of one edit that have the same prompt and another target.
    """

    capabilities = Capabilities(depends="model", needs_grad=True, mergeable=False)

    def __init__(
        self,
        site: int | str = -5,
        radius: float = 1.0,
        replacement: Replacement = "replace_prompt",
        start: Literal["cold", "warm"] = "cold",
        tuning: TuningSettings = GRACE_TUNING,
        seed: int = 0,
        contradictions: Contradictions = "last",
    ) -> None:
        super().__init__()
        ranges.above(0, "editor", radius=radius)
        ranges.one_of(get_args(Replacement), "editor", replacement=replacement)
        ranges.one_of(("cold", "warm"), "editor", start=start)
        self.site, self.radius, self.tuning, self.seed = site, radius, tuning, seed
        self.replacement: Replacement = replacement
        self.start, self.contradictions = start, contradictions

    def edit_site(self, model: LanguageModel) -> EditSite:
        """The site in ``model``."""
        return model.layer_map.sites([self.site])[0]

    def validate(self, model: LanguageModel, groups: Groups) -> None:
        """See :meth:`Editor.validate`."""
        self.edit_site(model)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        site = self.edit_site(model)
        flat = [[request] for group in groups for request in group]
        keys = prompt_states(model, [request.prompt for [request] in flat], site.name, "input").float()
        responder = ValueResponder(site.name, self.replacement)
        values = _Values(responder, self._initial(model, site, flat))
        failed = tune(model, tuning_texts(model, flat, self.tuning), names_of(flat), values, site.layer, self.tuning)
        trained = torch.stack([value.detach() for [value] in values.parameters])
        router, memories, start = Codebook(site.name, self.radius), [], 0
        for group in groups:
            good = [start + place for place in range(len(group)) if start + place not in failed]
            tensors = {KEY: keys[good], VALUE: trained[good], RADIUS: keys.new_full((len(good),), self.radius)}
            requests = tuple((request,) for request in named_requests([flat[place][0] for place in good]))
            items = Memory(requests, tensors)
            memories.append(router.join(items.select([]), items))
            start += len(group)
        changes = RoutedChanges(memories, router, responder)
        return GroupChanges(changes, problems_of(failed, flat))

    def _initial(self, model: LanguageModel, site: EditSite, requests: Groups) -> Tensor:
        """(N, fan_out) values to begin with."""
        if self.start == "warm":
            return prompt_states(model, [request.prompt for [request] in requests], site.name, "output").float()
        value = torch.rand(site.fan_out, generator=torch.Generator().manual_seed(self.seed))
        return value.to(site.weight.device).expand(len(requests), -1)


def _prompt_ends(batch: TextBatch) -> Tensor:
    """(R) position of the last prompt token; that of the last token in texts without a target."""
    tokens = batch.tokens
    before_target = tokens.answer_mask.int().argmax(1)
    return torch.where(tokens.answer_mask.any(1), before_target, tokens.attention_mask.sum(1) - 1)


class _Values(Tuned):
    """A value for each edit."""

    def __init__(self, responder: ValueResponder, initial: Tensor) -> None:
        super().__init__([[value.clone().requires_grad_()] for value in initial])
        self.responder = responder

    def terms(self, rows: Sequence[tuple[int, slice]], batch: TextBatch) -> Mapping[str, Term]:
        values = torch.stack(
            [self.parameters[edit][0] for edit, places in rows for _ in range(places.stop - places.start)]
        )
        ends = BatchRows(list(range(len(values))), _prompt_ends(batch))

        def term(x: Tensor, output: Tensor) -> Tensor:
            split = split_rows(output, len(values), 1)
            where = self.responder.positions(ends, split.shape[1], continues=False)
            return replacing(split, values, where).reshape(output.shape)

        return {self.responder.site: term}
