"""Key statistics on text sampled from the model, for editing without fitting them first."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.errors import ConfigurationError
from lightning_edit.files import cache_folder
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.moment_sums import MomentSums
from lightning_edit.models.statistics import MANIFEST, Corpus, KeyStatistics

_LOG = logging.getLogger(__name__)
_TOKENS_PER_ENTRY = 3
"""Tokens to sample for each entry of a key."""
_LENGTH = 64
"""Tokens of a sampled text."""
_BATCH = 16
"""Texts in a batch of the statistics."""


def sampled_statistics(
    model: LanguageModel, layers: Sequence[int], tokens: int | None = None, seed: int = 0
) -> KeyStatistics:
    """Computes second moments of the keys of some layers on text sampled from the model (temperature 1, all tokens).

    They are a substitute for statistics on a corpus, which are better: see benchmarks/README.md. They are cached per
    model in the user's cache folder.

    Args:
        model: The model.
        layers: The layers.
        tokens: Tokens to sample, at least as many as a key has entries; defaults to three times as many.
        seed: Seed of the sampling.
    """
    if tokens is None:
        tokens = _TOKENS_PER_ENTRY * max(model.layer_map.site(layer).fan_in for layer in layers)
    folder = cache_folder() / "statistics" / f"{model.fingerprint.short}-{tokens}-{seed}"
    known = KeyStatistics.load(folder) if (folder / MANIFEST).is_file() else None
    if known is not None:
        known.check(model)
    moments = dict(known.moments) if known is not None else {}
    sites = [site for site in map(model.layer_map.site, layers) if site.name not in moments]
    if known is not None and not sites:
        return known
    _LOG.info("no statistics of the keys: collecting some on %d tokens that the model samples itself", tokens)
    rows = sample_texts(model, max(tokens // _LENGTH, 1), _LENGTH, seed)
    sums = MomentSums()
    for batch in rows.split(_BATCH):
        sums.add_batch(model, batch, sites)
    moments |= {name: moment.cpu() for name, moment in sums.moments().items()}
    digest = hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()
    corpus = Corpus(f"sampled by the model itself (seed {seed})", _LENGTH, rows.numel(), digest)
    statistics = KeyStatistics(moments, corpus, model.name, model.fingerprint)
    _LOG.info("kept in %s", statistics.save(folder))
    return statistics


@torch.no_grad()
def sample_texts(model: LanguageModel, count: int, length: int, seed: int) -> Tensor:
    """Samples texts (count, length) int64, each from a random first token; the random state is restored."""
    rng = random.Random(seed)
    special = set(model.tokenizer.all_special_ids)
    vocabulary = [id for id in range(len(model.tokenizer)) if id not in special]
    if not vocabulary:
        raise ConfigurationError(f"{model.name} has no tokens to begin a text with; name fitted statistics")
    starts = torch.tensor([[rng.choice(vocabulary)] for _ in range(count)])
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return model.sample(starts, length)
