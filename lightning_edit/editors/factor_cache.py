"""Cache of the gradient factors of training requests."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_edit.models.capture import GradientFactors, capture_factors
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.trunk import Trunk
from lightning_edit.tokenization import EncodedText, TextKey, TokenBatch

_LOG = logging.getLogger(__name__)

_GROUP = 32
"""Number of requests per pass of :meth:`FactorCache.fill`."""

Factors = Mapping[str, GradientFactors]
"""Gradient factors by site name."""


class FactorCache:
    """Caches gradient factors of requests under the unedited model, which training an editor does not change.

    They are kept in memory, in float32: (fan-in + fan-out) numbers for each token and site.

    Args:
        limit: Maximum size in bytes; the factors of further requests are computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: dict[TextKey, dict[str, tuple[Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def fill(
        self,
        model: LanguageModel,
        texts: Iterable[EncodedText],
        sites: Sequence[EditSite],
        trunk: Trunk | None = None,
        answers_only: bool = False,
    ) -> None:
        """Computes and caches the factors of requests up to the limit, with a progress bar.

        The grouping depends only on the requests, so that equal requests give the same factors to the last bit, and an
        interrupted run resumes exactly.

        Args:
            model: The unedited model.
            texts: Requests that will be needed.
            sites: The edit sites.
            trunk: Cached hidden states below the lowest site.
            answers_only: Keep only the factors at the answers' positions.
        """
        wanted = {text.key: text for text in texts}
        order = [wanted[key] for key in sorted(wanted, key=lambda key: (len(key), key))]
        groups = [order[start : start + _GROUP] for start in range(0, len(order), _GROUP)]
        for group in tqdm(groups, desc="gradient factors", leave=False, disable=None if groups else True):
            batch = model.encoder.collate(group).to(model.device)
            positions = batch.answer_mask if answers_only else None
            factors, losses = capture_factors(model, batch, sites, trunk, positions)
            if not self._keep(batch, factors, losses):
                break
        _LOG.info("gradient factors of %d of %d requests kept, %.2f GB", len(self), len(order), self.bytes / 2**30)

    def _keep(self, batch: TokenBatch, factors: Factors, losses: Tensor) -> bool:
        """Keeps the factors of a batch if they fit, except rows that are not finite, which are reported on use."""
        needed = sum(one.x.nbytes + one.delta.nbytes for one in factors.values())
        if self.bytes + needed > self.limit:
            return False
        self.bytes += needed
        for row, key in enumerate(batch.keys):
            of_row = {site: (one.x[one.rows == row], one.delta[one.rows == row]) for site, one in factors.items()}
            values = [losses[row], *(part for pair in of_row.values() for part in pair)]
            if all(bool(part.isfinite().all()) for part in values):
                self._kept[key] = of_row
        return True

    def get(self, batch: TokenBatch) -> dict[str, GradientFactors] | None:
        """Returns the factors of a batch if all of its rows are cached, or None.

        Args:
            batch: R requests.
        """
        kept = [self._kept.get(key) for key in batch.keys]
        rows = [entry for entry in kept if entry is not None]
        if len(rows) < len(kept):
            return None
        return {site: _joined([entry[site] for entry in rows]) for site in rows[0]}


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> GradientFactors:
    """Concatenates the factors of all rows, in their order."""
    x, delta = (torch.cat(column) for column in zip(*parts, strict=True))
    counts = torch.tensor([len(x_part) for x_part, _ in parts], device=x.device)
    return GradientFactors(x, delta, torch.arange(len(parts), device=x.device).repeat_interleave(counts))
