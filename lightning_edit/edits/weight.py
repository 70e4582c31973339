"""Edits that change weights at edit sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_edit.edits.base import TENSORS, Edit, Provenance, Scorer
from lightning_edit.edits.deltas import Delta, delta_from
from lightning_edit.edits.hooks import added_terms
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite


class WeightEdit(Edit):
    """A change of the weights of some edit sites: W' = W + delta, with delta factored or dense.

    Applied, it adds x @ delta to the output of each site, which is the same to rounding and leaves the weights alone.

    Args:
        deltas: Name of the edit site to its change; (fan_in, fan_out) whatever the module's orientation.
        provenance: Where the edit comes from.
        keys: Name of the edit site to the (n, fan_in) keys that edits on top of this one must know (AlphaEdit).
    """

    kind = "weight"

    def __init__(
        self, deltas: Mapping[str, Delta], provenance: Provenance, keys: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(provenance)
        self.deltas = dict(deltas)
        self.keys = dict(keys or {})

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[Scorer]:
        """See :meth:`Edit.applied`."""
        self.check(model)
        terms = {name: delta.to(_device(model, name)).output for name, delta in self.deltas.items()}
        with added_terms(model, terms):
            yield model

    def check(self, model: LanguageModel) -> str | None:
        """Refuses another base model; returns a warning about another precision of the same one, if it is that."""
        return model.check_base(self.provenance.fingerprint, "edit", self.provenance.base_name)

    @torch.no_grad()
    def merge(self, model: LanguageModel) -> None:
        """Writes W + delta into the weights, computed in float32 and rounded once to the weight's dtype.

        The model is then another one than the edit's base, by its fingerprint.

        Raises:
            BaseModelMismatchError: If the edit was made for another base model.
            EditError: If a site's weight is quantised, or shared with another module.
        """
        self.check(model)
        sites = [model.layer_map.named_site(name) for name in self.deltas]
        for site in sites:
            _refuse_unwritable(model, site)
        for site in sites:
            delta = site.oriented(self.deltas[site.name].dense()).to(site.weight.device)
            site.weight.copy_((site.weight.float() + delta).to(site.weight.dtype))
        model.weights_changed()

    def write(self, folder: Path) -> dict[str, Any]:
        """See :meth:`Edit.write`."""
        tensors = {
            f"{site}/{name}": tensor.detach().cpu().contiguous()
            for site, delta in self.deltas.items()
            for name, tensor in delta.tensors().items()
        }
        tensors.update({f"{site}/keys": keys.detach().cpu().contiguous() for site, keys in self.keys.items()})
        save_file(tensors, folder / TENSORS)
        return {"sites": list(self.deltas)}

    @classmethod
    def read(cls, folder: Path, details: dict[str, Any], provenance: Provenance) -> WeightEdit:
        """See :meth:`Edit.read`."""
        # Copies: the alignment of tensors in the file would choose other kernels, which round differently.
        tensors = {name: value.clone() for name, value in load_file(folder / TENSORS).items()}
        deltas, keys = {}, {}
        for site in details["sites"]:
            prefix = f"{site}/"
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if "keys" in own:
                keys[site] = own.pop("keys")
            deltas[site] = delta_from(own)
        return cls(deltas, provenance, keys)


def _device(model: LanguageModel, name: str) -> torch.device:
    return model.layer_map.named_site(name).weight.device


def _refuse_unwritable(model: LanguageModel, site: EditSite) -> None:
    if not site.weight.is_floating_point():
        raise EditError(
            f"{site.name} holds quantised weights, into which an edit cannot be merged; apply the edit instead, or "
            "merge it into the base model before quantising"
        )
    owners = [name for name, module in model.model.named_modules() if getattr(module, "weight", None) is site.weight]
    if len(owners) > 1:
        raise EditError(f"the weight of {site.name} is shared by {owners}; merging would change all of them")
