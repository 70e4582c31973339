"""WISE's side memories: routing by activation gaps, and TIES merging (Wang et al. 2024, arXiv 2405.14768)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from lightning_edit.edits import Match, Memory, Router, SiteResponder, StackedMatrices
from lightning_edit.edits.hooks import Term
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.ties import ties_merge
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.passes import BatchRows
from lightning_edit.models.recording import Tap, record_all
from lightning_edit.tokenization import EncodedText

MATRIX, THRESHOLD, SHARDS = "matrix", "threshold", "shards"


def activation_gap(activation: Any, output: Tensor, change: Tensor) -> Tensor:
    """Computes the activation gap ‖act(W a) - act(W' a)‖₂ at each position.

    The authors' code applies the model's activation function to both products before it takes their distance.

    Args:
        activation: The activation function.
        output: (…, D) outputs W a of the main memory.
        change: (…, D) what the side memory adds to them.

    Returns:
        (…) gaps.
    """
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


def activation_name(model: LanguageModel) -> str:
    """Returns the name of the model's activation function, as in transformers.

    Raises:
        ConfigurationError: If its configuration names none.
    """
    config: Any = model.model.config.get_text_config()
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            return value
    raise ConfigurationError(
        f"{model.name}: the configuration names no activation function (hidden_act), which WISE's activation gap needs"
    )


def site_states(model: LanguageModel, texts: Sequence[EncodedText], site: str) -> list[tuple[Tensor, Tensor]]:
    """Records a site's inputs and outputs at all tokens of texts, under the model as it is.

    Args:
        model: The model.
        texts: The texts.
        site: Name of the site.

    Returns:
        For each text of T tokens, (T, fan_in) inputs and (T, fan_out) outputs in float32.
    """
    where = model.layer_map.named_site(site)
    taps = {side: Tap(where.module, side, where.layer) for side in ("input", "output")}
    seen = record_all(model, texts, taps)
    pairs = zip(seen["input"], seen["output"], strict=True)
    return [(inputs.float(), outputs.float()) for inputs, outputs in pairs]
