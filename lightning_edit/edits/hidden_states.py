"""Hidden states of prompts, for routers that compare them with stored ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.recording import Side, Tap, record


def prompt_states(model: LanguageModel, prompts: Sequence[str], site: str, side: Side) -> Tensor:
    """Returns the (P, D) inputs or outputs of a site at the last token of each prompt.

    Args:
        model: The model; edits may be applied to it.
        prompts: P prompts.
        site: Name of the site.
        side: "input" or "output".
    """
    where = model.layer_map.named_site(site)
    texts = [model.encoder.encode(prompt) for prompt in prompts]
    seen = record(model, texts, [len(text.ids) - 1 for text in texts], {site: Tap(where.module, side, where.layer)})
    return seen[site]


def distances(states: Tensor, keys: Tensor) -> Tensor:
    """Computes (P, M) Euclidean distances, which are exact even for equal vectors."""
    return torch.cdist(states.float(), keys.float().to(states.device), compute_mode="donot_use_mm_for_euclid_dist")
