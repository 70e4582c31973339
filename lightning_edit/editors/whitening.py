"""Whitening of the keys of edit sites, so that prompts that are similar only in form get different keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_edit.functional.whitening import principal_whitening
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.moment_sums import MomentSums
from lightning_edit.models.passes import ForwardPasses
from lightning_edit.models.recording import Tap, as_rows, tapped
from lightning_edit.tokenization import EncodedText, similar_lengths


class KeyWhitening(nn.Module):
    """The whitening z = W x of one site's keys; the identity until it is fitted.

    See :func:`lightning_edit.functional.whitening.principal_whitening`. The directions are stored in half precision. W
    is defined by the rounded values, so that :meth:`transposed` is exactly its transpose.

    Args:
        size: Length of the keys M.
        rank: Number of directions K.
    """

    scale: Tensor
    basis: Tensor
    gains: Tensor
    fitted: Tensor

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        rank = min(rank, size - 1)
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("basis", torch.zeros(size, rank, dtype=torch.float16))
        self.register_buffer("gains", torch.zeros(rank))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, moment: Tensor) -> None:
        """Fits the whitening to a (M, M) second moment of keys."""
        scale, basis, gains = principal_whitening(moment, self.basis.shape[1])
        self.scale.copy_(scale)
        self.basis.copy_(basis)
        self.gains.copy_(gains)
        self.fitted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Computes (…, M) W x of each row."""
        return self._stretched(x * self.scale)

    def transposed(self, z: Tensor) -> Tensor:
        """Computes (…, M) Wᵀ z of each row, for which ⟨z, W x⟩ = ⟨Wᵀ z, x⟩."""
        return self._stretched(z) * self.scale

    def _stretched(self, x: Tensor) -> Tensor:
        basis = self.basis.to(x.dtype)
        return x + (x @ basis * self.gains) @ basis.T


@torch.no_grad()
def answering_key_moments(
    model: LanguageModel, texts: Sequence[EncodedText], sites: Sequence[EditSite], passes: ForwardPasses | None = None
) -> dict[str, Tensor]:
    """Computes second moments of the keys at the answer positions of texts, which predict the target's tokens.

    Args:
        model: The unedited model.
        texts: Prompts with their targets.
        sites: The sites.
        passes: Forward passes with cached hidden states below the lowest site; the model's own by default.

    Returns:
        (M, M) float32 moments by site name.
    """
    sums = MomentSums()
    taps = {site.name: Tap(site.module, "input", site.layer) for site in sites}
    for chunk in similar_lengths([len(text.ids) for text in texts], model.saturation_tokens):
        batch = model.encoder.collate([texts[index] for index in chunk]).to(model.device)
        seen: dict[str, Tensor] = {}
        with tapped(taps, seen):
            (passes or model).head_inputs(batch, torch.zeros_like(batch.answer_mask))
        sums.add({name: as_rows(keys, batch.input_ids.shape)[batch.answer_mask] for name, keys in seen.items()})
    return sums.moments()
