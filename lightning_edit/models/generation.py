"""Generated continuations of prompts, and sampled texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lightning_edit.models.passes import BatchContext, BatchRows, ReusedPrefix, tokens_to_run
from lightning_edit.tokenization import EncodedText, similar_lengths

if TYPE_CHECKING:
    from lightning_edit.models.language_model import LanguageModel

_SAMPLED_AT_ONCE = 64
"""Texts sampled per batch."""


def continue_texts(
    model: LanguageModel,
    encoded: Sequence[EncodedText],
    limits: Sequence[int],
    settings: dict[str, Any],
    around: BatchContext | None,
    prefix: ReusedPrefix | None,
) -> list[str]:
    """Continues encoded prompts up to each one's limit in tokens; see :meth:`LanguageModel.generate`."""
    texts: dict[int, str] = {}
    lengths = [tokens_to_run(text, prefix) for text in encoded]
    for chunk in similar_lengths(lengths, model.tokens_per_batch, limits):
        ids, mask, cached = _to_continue(model, [encoded[index] for index in chunk], prefix)
        config = _generation_config(model, max(limits[index] for index in chunk), settings)
        last_column = torch.full((len(chunk),), ids.shape[1] - 1, device=model.device)
        stopping = {"tokenizer": model.tokenizer} if config.stop_strings else {}
        with around(BatchRows(chunk, last_column, decoding=True)) if around else nullcontext():
            output = _generate(model, ids, mask, config, **cached, **stopping)
        for index, row in zip(chunk, output[:, ids.shape[1] :].tolist(), strict=True):
            texts[index] = model.encoder.decode(row[: limits[index]])
    return [texts[index] for index in range(len(encoded))]


def first_generated_logits(
    model: LanguageModel, encoded: Sequence[EncodedText], prefix: ReusedPrefix | None = None
) -> Tensor:
    """Returns logits (R, vocabulary) that the first generated token of prompts is chosen from.

    Args:
        model: The model.
        encoded: The prompts (R).
        prefix: See :meth:`LanguageModel.generate`.
    """
    ids, mask, cached = _to_continue(model, encoded, prefix)
    config = _generation_config(model, 1, {"output_logits": True, "return_dict_in_generate": True})
    logits: Tensor = _generate(model, ids, mask, config, **cached).logits[0]
    return logits


def sample_texts(model: LanguageModel, starts: Tensor, length: int) -> Tensor:
    """Samples texts of a length in tokens, in batches; see :meth:`LanguageModel.sample`."""
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "eos_token_id": None}
    config = _generation_config(model, length - starts.shape[1], settings)
    # A step reads all weights for any number of texts, so larger batches take hardly longer.
    parts = starts.to(model.device).split(_SAMPLED_AT_ONCE)
    return torch.cat([_generate(model, part, torch.ones_like(part), config) for part in parts])


def _generate(model: LanguageModel, ids: Tensor, mask: Tensor, config: GenerationConfig, **settings: Any) -> Any:
    network: Any = model.model
    with _without_published_generation_config(network), model.permitted_call():
        return network.generate(input_ids=ids, attention_mask=mask, generation_config=config, **settings)


def _to_continue(
    model: LanguageModel, encoded: Sequence[EncodedText], prefix: ReusedPrefix | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Returns ids and attention mask (R, S) of prompts, and the cache to continue them from, if any."""
    if prefix is not None:
        return *prefix.continued(encoded), {"past_key_values": prefix.cache(len(encoded))}
    batch = model.encoder.collate(encoded, padding_side="left").to(model.device)
    return batch.input_ids, batch.attention_mask, {}


def _generation_config(model: LanguageModel, max_new_tokens: int, settings: dict[str, Any]) -> GenerationConfig:
    values = {
        "do_sample": False,
        # Hooks that are added after compilation have no effect.
        "disable_compile": True,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": model.encoder.pad_id,
        "eos_token_id": getattr(model.model.generation_config, "eos_token_id", None),
    }
    return GenerationConfig(**{**values, **settings})


@contextmanager
def _without_published_generation_config(network: PreTrainedModel) -> Iterator[None]:
    """Hides a model's published generation settings.

    transformers fills unset fields of a GenerationConfig from them, so a repetition penalty or beams would change
    greedy decoding.
    """
    published = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = published
