"""Responders that several methods share: a text in front of the prompt, changes at sites, or another model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_edit.edits.hooks import Term, added_terms
from lightning_edit.edits.memory import Memory
from lightning_edit.edits.routed import Responder
from lightning_edit.edits.rows import repeats_of
from lightning_edit.errors import TokenizationError
from lightning_edit.functional.divergence import kl_divergence
from lightning_edit.models.counterfactual import CounterfactualModel, given
from lightning_edit.models.language_model import BatchContext, BatchRows, LanguageModel, Score


class TextResponder(Responder):
    """The base model answers, with the item's text in front of the prompt.

    Args:
        template: How text and prompt are put together.
    """

    def __init__(self, template: str = "{text}{prompt}") -> None:
        super().__init__()
        self.template = template

    def shown(self, text: str, prompt: str) -> str:
        """What the model is given."""
        return self.template.replace("{prompt}", "\0").replace("{text}", text).replace("\0", prompt)

    def score(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        targets: Sequence[str],
        items: Sequence[int],
        memory: Memory,
        references: Sequence[Tensor | None],
        keep_head_input: bool,
    ) -> list[Score]:
        """See :meth:`Responder.score`."""
        return model.score(self._all_shown(prompts, items, memory), targets, references, keep_head_input)

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        max_new_tokens: Sequence[int],
        items: Sequence[int],
        memory: Memory,
        settings: dict[str, Any],
    ) -> list[str]:
        """See :meth:`Responder.generate`."""
        return model.generate(self._all_shown(prompts, items, memory), max_new_tokens, **settings)

    def _all_shown(self, prompts: Sequence[str], items: Sequence[int], memory: Memory) -> list[str]:
        return [self.shown(memory.texts[item], prompt) for prompt, item in zip(prompts, items, strict=True)]


class SiteResponder(Responder):
    """The base model answers, with terms added to the outputs of sites in the rows that were routed to an item."""

    @abstractmethod
    def terms(
        self, model: LanguageModel, memory: Memory, items: Tensor, batch: BatchRows, repeats: int
    ) -> Mapping[str, Term]:
        """Site name to what is added to its output.

        Args:
            model: The base model.
            memory: What is remembered.
            items: (R) int64 the item of each row of the batch.
            batch: The rows, and where their prompts end.
            repeats: How many consecutive rows a generation may make of one.
        """

    def _around(self, model: LanguageModel, items: Sequence[int], memory: Memory, repeats: int) -> BatchContext:
        def around(batch: BatchRows) -> AbstractContextManager[None]:
            item_index = torch.tensor([items[index] for index in batch.indices], device=model.device)
            return added_terms(model, self.terms(model, memory, item_index, batch, repeats))

        return around

    def score(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        targets: Sequence[str],
        items: Sequence[int],
        memory: Memory,
        references: Sequence[Tensor | None],
        keep_head_input: bool,
    ) -> list[Score]:
        """See :meth:`Responder.score`."""
        around = self._around(model, items, memory, 1)
        return model.score(prompts, targets, references, keep_head_input, around=around)

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        max_new_tokens: Sequence[int],
        items: Sequence[int],
        memory: Memory,
        settings: dict[str, Any],
    ) -> list[str]:
        """See :meth:`Responder.generate`."""
        around = self._around(model, items, memory, repeats_of(settings))
        return model.generate(prompts, max_new_tokens, around=around, **settings)


class CounterfactualResponder(Responder):
    """A counterfactual model answers the prompt behind the remembered request (SERAC, Mitchell et al. 2022).

    Args:
        counterfactual: The model.
    """

    def __init__(self, counterfactual: CounterfactualModel) -> None:
        super().__init__()
        self.counterfactual = counterfactual

    def setup(self, model: LanguageModel) -> None:
        """See :meth:`Responder.setup`."""
        self.counterfactual.setup(model)

    def weights(self) -> dict[str, Tensor]:
        """See :meth:`Responder.weights`."""
        return self.counterfactual.weights()

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """See :meth:`Responder.load_weights`."""
        self.counterfactual.load_at_setup(state)

    def score(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        targets: Sequence[str],
        items: Sequence[int],
        memory: Memory,
        references: Sequence[Tensor | None],
        keep_head_input: bool,
    ) -> list[Score]:
        """See :meth:`Responder.score`; in the base model's tokens, whatever the other model's are."""
        shown = self._shown(prompts, items, memory)
        same_tokens = self.counterfactual.same_tokens(model)
        with self.counterfactual.speaking(model) as other:
            if other is model:
                return other.score(shown, targets, references, keep_head_input)
            if same_tokens:
                return _compared(other.score(shown, targets, None, True), references, other, model)
            return [
                translated_score(score, other, model, prompt, target)
                for score, prompt, target in zip(other.score(shown, targets), prompts, targets, strict=True)
            ]

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        max_new_tokens: Sequence[int],
        items: Sequence[int],
        memory: Memory,
        settings: dict[str, Any],
    ) -> list[str]:
        """See :meth:`Responder.generate`."""
        with self.counterfactual.speaking(model) as other:
            return other.generate(self._shown(prompts, items, memory), max_new_tokens, **settings)

    @staticmethod
    def _shown(prompts: Sequence[str], items: Sequence[int], memory: Memory) -> list[str]:
        return [given(memory.requests[item][0], prompt) for prompt, item in zip(prompts, items, strict=True)]


def _compared(
    scores: Sequence[Score], references: Sequence[Tensor | None], other: LanguageModel, base: LanguageModel
) -> list[Score]:
    """Scores of another model with the base's tokens, with its divergence from what the base's head made of references.

    Rows that one of the two vocabularies is padded with are left out.
    """
    compared = []
    for score, reference in zip(scores, references, strict=True):
        divergence = None
        if reference is not None and score.head_input is not None:
            before, after = base.logits_of(reference.to(base.device)), other.logits_of(score.head_input)
            size = min(before.shape[-1], after.shape[-1])
            divergence = float(kl_divergence(before[:, :size].float(), after[:, :size].float()).mean())
        compared.append(replace(score, head_input=None, divergence=divergence))
    return compared


def translated_score(score: Score, other: LanguageModel, base: LanguageModel, prompt: str, target: str) -> Score:
    """A score in the base's tokens, by way of the text, for a model with a tokenizer of its own.

    The predicted text is read with the base's tokenizer, cut or padded (with -1) to the target's length; the target's
    log-probability is spread evenly over the base's tokens, so that its sum stays what it was. There is no divergence
    between distributions over different tokens.
    """
    expected = base.encoder.encode(prompt, target).target_ids
    text = other.encoder.decode(score.predicted_ids).strip()
    try:
        predicted = base.encoder.encode(prompt, text).target_ids
    except TokenizationError:
        # The base has no tokens for it, so it cannot be the target.
        predicted = ()
    padded = (*predicted, *([-1] * len(expected)))[: len(expected)]
    share = sum(score.log_probs) / max(len(expected), 1)
    return Score(expected, tuple(padded), (share,) * len(expected))
