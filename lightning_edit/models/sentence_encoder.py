"""A frozen sentence encoder, for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edit.models.scope import load_sentence_encoder


class SentenceEncoder:
    """Embeds texts as unit vectors; loaded on first use and never part of a checkpoint.

    Args:
        name: Hub id, local folder, or the bundled name "all-minilm-l6-v2".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded: nn.Module | None = None

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Computes float32 unit vectors (N, D), whose dot products are cosine similarities.

        Raises:
            ConfigurationError: If sentence-transformers is not installed.
            SourceNotFoundError: If there is no such encoder.
        """
        if self._loaded is None:
            self._loaded = load_sentence_encoder(self.name).eval()
        encoder: Any = self._loaded
        vectors: Tensor = encoder.encode(
            list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.float().clone()
