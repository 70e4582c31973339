"""Teacher-forced scores of targets after their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_edit.models.head import score_tokens
from lightning_edit.models.passes import BatchContext, BatchRows, ForwardPasses, ReusedPrefix, tokens_to_run
from lightning_edit.tokenization import EncodedText, TokenBatch, similar_lengths

if TYPE_CHECKING:
    from lightning_edit.models.language_model import LanguageModel


@dataclass(frozen=True)
class Score:
    """Scores of one target after its prompt.

    Args:
        target_ids: The target's tokens (T).
        predicted_ids: The most probable token at each target position, given the earlier tokens (T).
        log_probs: Natural logarithm of each target token's probability (T).
        head_input: (T, hidden size): input of the language-model head at these positions; None if not requested.
        divergence: Mean KL(reference || this) in nats over the positions; None without a reference.
    """

    target_ids: tuple[int, ...]
    predicted_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    head_input: Tensor | None = None
    divergence: float | None = None


@torch.no_grad()
def score_texts(
    model: LanguageModel,
    encoded: Sequence[EncodedText],
    references: Sequence[Tensor | None] | None,
    keep_head_input: bool,
    passes: ForwardPasses | None,
    around: BatchContext | None,
    prefix: ReusedPrefix | None,
) -> list[Score]:
    """Scores the targets of encoded texts, in batches of similar length; see :meth:`LanguageModel.score`."""
    scores: dict[int, Score] = {}
    lengths = [tokens_to_run(text, prefix) for text in encoded]
    for chunk in similar_lengths(lengths, model.tokens_per_batch, enough=model.saturation_tokens):
        texts = [encoded[index] for index in chunk]
        batch = model.encoder.collate(texts, "right" if prefix is not None else None).to(model.device)
        kept = [references[index] if references else None for index in chunk]
        with around(_rows(chunk, texts, batch)) if around else nullcontext():
            inputs = (prefix or passes or model).head_inputs(batch, batch.answer_mask)
            scored = _score_batch(model, batch, texts, inputs, kept, keep_head_input)
        scores.update(zip(chunk, scored, strict=True))
    return [scores[index] for index in range(len(encoded))]


def _rows(chunk: list[int], texts: Sequence[EncodedText], batch: TokenBatch) -> BatchRows:
    prompt_lengths = torch.tensor([text.target[0] for text in texts], device=batch.input_ids.device)
    first_columns = batch.attention_mask.argmax(1)
    return BatchRows(chunk, first_columns + prompt_lengths - 1)


def _score_batch(
    model: LanguageModel,
    batch: TokenBatch,
    texts: Sequence[EncodedText],
    inputs: Tensor,
    kept: Sequence[Tensor | None],
    keep_head_input: bool,
) -> list[Score]:
    lengths = [len(text.target_ids) for text in texts]
    has_reference = [reference is not None for reference in kept]
    compared = torch.tensor(has_reference).repeat_interleave(torch.tensor(lengths)).nonzero()[:, 0]
    references = [reference.to(inputs) for reference in kept if reference is not None]
    before = torch.cat(references) if references else inputs[:0]
    ratings = score_tokens(model, inputs, batch.target_ids, compared.to(inputs.device), before)
    columns = (inputs, ratings.log_probs, ratings.predicted)
    per_text = zip(*(column.split(lengths) for column in columns), strict=True)
    changes = iter(ratings.divergences.split([n for n, asked in zip(lengths, has_reference, strict=True) if asked]))
    return [
        Score(
            text.target_ids,
            tuple(predicted.tolist()),
            tuple(log_probs.tolist()),
            read.clone() if keep_head_input else None,
            float(next(changes).mean()) if asked else None,
        )
        for text, (read, log_probs, predicted), asked in zip(texts, per_text, has_reference, strict=True)
    ]
