"""Grouped-query attention with a mask on a CPU, without repeating keys and values for every query head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_NAME = "lightning_edit_grouped_sdpa"
_SPECIAL = ("position_bias", "softcap", "cache")
"""Arguments that only transformers' own function handles."""


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Uses grouped-query attention with a mask for a model on a CPU, within the context.

    In grouped-query attention several query heads share keys and values. With a mask, transformers repeats these for
    each head, as the fused GPU kernels require. The CPU kernel does not require it, and gives the same numbers with a
    third of the copies for nine query heads on three. Models with an attention implementation other than "sdpa" are
    not changed.

    Args:
        model: The model; its configuration names another attention function within the context.
    """
    config = model.config.get_text_config()
    chosen = config._attn_implementation == "sdpa" and model._supports_attention_backend
    if not chosen or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(_NAME, _grouped)
    AttentionMaskInterface.register(_NAME, AttentionMaskInterface()["sdpa"])
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The "sdpa" of transformers, but grouped also with a mask.

    Takes (R, H, S, D) queries, (R, G, P + S, D) keys and values for G groups of H heads, and a (R, 1, S, P + S) mask.

    Returns:
        (R, S, H, D).
    """
    grouped = query.shape[1] > key.shape[1] and attention_mask is not None
    if not grouped or any(options.get(name) is not None for name in _SPECIAL):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return output, None
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None
