"""Merges changes into the weights of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_edit.edits.deltas import Delta
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite


@torch.no_grad()
def write_deltas(model: LanguageModel, deltas: Mapping[str, Delta]) -> None:
    """Writes W + ΔW into the weights, computed in float32 and rounded once to the weight's dtype.

    Args:
        model: The model; its fingerprint changes.
        deltas: ΔW by site name; always (fan_in, fan_out), for any orientation of the module.

    Raises:
        EditError: If a site's weight is quantised, or shared with another module; nothing is written then.
    """
    sites = [model.layer_map.named_site(name) for name in deltas]
    for site in sites:
        _refuse_unwritable(model, site)
    for site in sites:
        delta = site.oriented(deltas[site.name].dense()).to(site.weight.device)
        site.weight.copy_((site.weight.float() + delta).to(site.weight.dtype))
    model.weights_changed()


def _refuse_unwritable(model: LanguageModel, site: EditSite) -> None:
    if not site.weight.is_floating_point():
        raise EditError(
            f"{site.name} holds quantised weights, into which an edit cannot be merged; apply the edit instead, or "
            "merge it into the base model before quantising"
        )
    owners = [name for name, module in model.model.named_modules() if getattr(module, "weight", None) is site.weight]
    if len(owners) > 1:
        raise EditError(f"the weight of {site.name} is shared by {owners}; merging would change all of them")
