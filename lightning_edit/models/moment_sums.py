"""Accumulates second moments of keys over a corpus; resumable and mergeable."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.distributed import sum_over_processes
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite
from lightning_edit.models.products import multiplied
from lightning_edit.models.recording import Tap, tapped
from lightning_edit.models.skipping import skipped
from lightning_edit.tokenization import TokenBatch

_LOG = logging.getLogger(__name__)
_BATCH_FACTOR = 4
"""Tokens per pass, as a multiple of ``LanguageModel.saturation_tokens``: adding a product also takes time."""


@dataclass
class MomentSums:
    """Sums Σ k kᵀ over tokens, for every site.

    Products are computed in float32 and summed over passes in float64.

    Args:
        sums: Site name to (M, M) float64.
        tokens: Tokens so far.
        batches: Batches so far, of this process.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    batches: int = 0

    def add_batch(self, model: LanguageModel, ids: Tensor, sites: list[EditSite]) -> None:
        """Adds the keys of every token of (B, L) int64 ids, split into passes of an efficient size."""
        for part in ids.split(max(_BATCH_FACTOR * model.saturation_tokens // ids.shape[1], 1)):
            self.add(keys_of(model, part, sites))
        self.batches += 1

    def add(self, keys: dict[str, Tensor]) -> None:
        """Adds keys: site name to (T, M)."""
        for site, rows in keys.items():
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
            product = multiplied(wide.T, wide.T)
            if site in self.sums:
                # The sums of a resumed run were read from a file, on the CPU.
                self.sums[site] = self.sums[site].to(product.device).add_(product)
            else:
                self.sums[site] = product.double()
        self.tokens += len(next(iter(keys.values())))

    def of_all_processes(self, sites: Sequence[EditSite]) -> MomentSums:
        """Reduces the sums over all processes; each process has read its share of the corpus.

        Args:
            sites: The sites; a process without any batch has no sums of its own.
        """
        device = sites[0].weight.device
        counts = sum_over_processes(torch.tensor([self.tokens, self.batches], device=device))
        sums = {}
        for site in sites:
            nothing = torch.zeros(site.fan_in, site.fan_in, dtype=torch.float64)
            sums[site.name] = sum_over_processes(self.sums.get(site.name, nothing).to(device, copy=True))
        return MomentSums(sums, *counts.tolist())

    def moments(self) -> dict[str, Tensor]:
        """Returns the second moment (M, M) float32 of each site."""
        return {site: (total / self.tokens).float() for site, total in self.sums.items()}

    def save(self, path: Path, identity: str) -> None:
        """Saves the sums, to resume from them.

        Args:
            path: The file.
            identity: Identifies the model, corpus and layers.
        """
        metadata = {"identity": identity, "tokens": json.dumps(self.tokens), "batches": json.dumps(self.batches)}
        with replace_file(path, sum(total.nbytes for total in self.sums.values())) as temporary:
            save_file({site: total.cpu().contiguous() for site, total in self.sums.items()}, temporary, metadata)

    @classmethod
    def resume(cls, path: Path, identity: str) -> MomentSums:
        """Loads saved sums; empty if there is no file, or it has another identity.

        Raises:
            ConfigurationError: If the file is damaged.
        """
        if not path.is_file():
            return cls()
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != identity:
                    _LOG.warning(
                        "%s contains sums for another model, corpus or set of layers; starting from scratch", path
                    )
                    return cls()
                sums = {site: file.get_tensor(site) for site in file.keys()}  # noqa: SIM118 - not a dictionary
            return cls(sums, json.loads(metadata["tokens"]), json.loads(metadata["batches"]))
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"{path}: the sums of a run that was stopped are damaged ({error!r}); delete the file to begin anew"
            ) from error


@torch.no_grad()
def keys_of(model: LanguageModel, ids: Tensor, sites: list[EditSite]) -> dict[str, Tensor]:
    """Computes the keys of sites for every token of (B, L) int64 ids, skipping the blocks above.

    Returns:
        Site name to (B · L, M).
    """
    seen: dict[str, Tensor] = {}
    everywhere = torch.ones_like(ids)
    nowhere = torch.zeros_like(ids, dtype=torch.bool)
    batch = TokenBatch(ids, everywhere, everywhere.cumsum(1) - 1, nowhere, nowhere)
    above = model.layer_map.blocks[max(site.layer for site in sites) + 1 :]
    taps = {site.name: Tap(site.module, "input", site.layer) for site in sites}
    with tapped(taps, seen), skipped(above, model.block_returns):
        model.head_logits(batch, nowhere)
    return {name: values.reshape(-1, values.shape[-1]) for name, values in seen.items()}
