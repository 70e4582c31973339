"""Shared responders: text in front of the prompt, changes at sites, or another model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_edit.edits.hooks import Term
from lightning_edit.edits.memory import Memory
from lightning_edit.edits.routing import Responder
from lightning_edit.edits.row_scorer import RowScorer
from lightning_edit.errors import EditError, TokenizationError
from lightning_edit.functional.divergence import kl_divergence
from lightning_edit.models.counterfactual import CounterfactualModel, prepend_request
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchRows
from lightning_edit.models.scoring import Score
from lightning_edit.models.shared_prefix import SharedPrefix, shared_prefix

_CACHE_SETTINGS = {"use_cache", "cache_implementation", "cache_config", "past_key_values", "assistant_model"}
"""Generation settings of transformers that conflict with passing ``past_key_values``."""


class TextResponder(Responder):
    """Answers with the base model, with the item's text in front of the prompt.

    Args:
        template: Template that joins text and prompt.
    """

    def __init__(self, template: str = "{text}{prompt}") -> None:
        super().__init__()
        self.template = template

    def shown(self, text: str, prompt: str) -> str:
        """Returns the model's input for a text and a prompt."""
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
        texts, scores = self._with_text(prompts, items, memory), dict[int, Score]()
        for rows, prefix in _grouped(model, items, texts, targets):
            shown, wanted = [texts[row] for row in rows], [targets[row] for row in rows]
            compared = [references[row] for row in rows]
            scores.update(zip(rows, model.score(shown, wanted, compared, keep_head_input, prefix=prefix), strict=True))
        return [scores[row] for row in range(len(prompts))]

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
        texts, replies = self._with_text(prompts, items, memory), dict[int, str]()
        # Beam search repeats the rows of the input, but not those of a given cache.
        reuses = not _CACHE_SETTINGS & set(settings) and int(settings.get("num_beams") or 1) == 1
        groups = (
            _grouped(model, items, texts, new_tokens=max(max_new_tokens)) if reuses else [(range(len(texts)), None)]
        )
        for rows, prefix in groups:
            shown, limits = [texts[row] for row in rows], [max_new_tokens[row] for row in rows]
            replies.update(zip(rows, model.generate(shown, limits, prefix=prefix, **settings), strict=True))
        return [replies[row] for row in range(len(prompts))]

    def _with_text(self, prompts: Sequence[str], items: Sequence[int], memory: Memory) -> list[str]:
        return [self.shown(memory.texts[item], prompt) for prompt, item in zip(prompts, items, strict=True)]


def _grouped(
    model: LanguageModel,
    items: Sequence[int],
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    new_tokens: int = 0,
) -> Iterator[tuple[Sequence[int], SharedPrefix | None]]:
    """Yields rows that are run together: those of an item that begin with a long text, then all others."""
    others: list[int] = []
    for item in dict.fromkeys(items):
        rows = [row for row, item_of_row in enumerate(items) if item_of_row == item]
        encoded = [model.encoder.encode(texts[row], targets[row] if targets is not None else "") for row in rows]
        prefix = shared_prefix(model, encoded, new_tokens)
        if prefix is None:
            others += rows
        else:
            yield rows, prefix
    if others:
        yield others, None


class SiteResponder(Responder):
    """Answers with the base model, with terms added to site outputs in the rows that were routed to an item."""

    needs_prompt_end = False
    """Whether the terms depend on where the prompt ends, which generation without a cache does not tell."""

    @abstractmethod
    def terms(
        self, model: LanguageModel, memory: Memory, items: Tensor, batch: BatchRows, repeats: int
    ) -> Mapping[str, Term]:
        """Returns the terms to add to site outputs, by site name.

        Args:
            model: The base model.
            memory: The memory.
            items: (R) int64 item of each row of the batch.
            batch: The rows, and where their prompts end.
            repeats: Number of consecutive rows that a generation may make of one.
        """

    def _scorer(self, model: LanguageModel, items: Sequence[int], memory: Memory) -> RowScorer:
        def terms(owners: Sequence[int], batch: BatchRows, repeats: int) -> Mapping[str, Term]:
            return self.terms(model, memory, torch.tensor(owners, device=model.device), batch, repeats)

        return RowScorer(model, items, terms)

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
        return self._scorer(model, items, memory).score(prompts, targets, references, keep_head_input)

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        max_new_tokens: Sequence[int],
        items: Sequence[int],
        memory: Memory,
        settings: dict[str, Any],
    ) -> list[str]:
        """See :meth:`Responder.generate`.

        Raises:
            EditError: If the terms depend on where the prompt ends, and the cache of keys and values is switched off.
        """
        if self.needs_prompt_end and settings.get("use_cache") is False:
            raise EditError("use_cache: this edit needs the key-value cache; remove use_cache=False")
        return self._scorer(model, items, memory).generate(prompts, max_new_tokens, **settings)


class CounterfactualResponder(Responder):
    """Answers with a counterfactual model, given the remembered request and the prompt (SERAC, Mitchell et al. 2022).

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
        """See :meth:`Responder.score`; always in the base model's tokens."""
        shown = self._shown(prompts, items, memory)
        same_tokens = self.counterfactual.same_tokens(model)
        with self.counterfactual.answering(model) as other:
            if other is model:
                return other.score(shown, targets, references, keep_head_input)
            if same_tokens:
                return _with_divergences(other.score(shown, targets, None, True), references, other, model)
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
        with self.counterfactual.answering(model) as other:
            return other.generate(self._shown(prompts, items, memory), max_new_tokens, **settings)

    @staticmethod
    def _shown(prompts: Sequence[str], items: Sequence[int], memory: Memory) -> list[str]:
        return [prepend_request(memory.requests[item][0], prompt) for prompt, item in zip(prompts, items, strict=True)]


def _with_divergences(
    scores: Sequence[Score], references: Sequence[Tensor | None], other: LanguageModel, base: LanguageModel
) -> list[Score]:
    """Adds the divergence from the base's predictions to the scores of another model with the base's tokens.

    Padding rows of the larger vocabulary are left out.
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
    """Translates a score to the base's tokens, via the text, for a model with another tokenizer.

    The predicted text is tokenised by the base's tokenizer, and truncated or padded (with -1) to the target's length.
    The target's log-probability is spread evenly over the base's tokens, which keeps its sum. No divergence is defined
    between distributions over different tokens.
    """
    expected = base.encoder.encode(prompt, target).target_ids
    text = other.encoder.decode(score.predicted_ids).strip()
    try:
        predicted = base.encoder.encode(prompt, text).target_ids
    except TokenizationError:
        # The base cannot tokenise it, so it is not the target.
        predicted = ()
    padded = (*predicted, *([-1] * len(expected)))[: len(expected)]
    share = sum(score.log_probs) / max(len(expected), 1)
    return Score(expected, tuple(padded), (share,) * len(expected))
