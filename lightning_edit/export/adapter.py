"""Exports weight edits as LoRA adapters in PEFT's format, which peft, vLLM and others load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lightning_edit.edits.base import Edit
from lightning_edit.edits.sequence import EditSequence
from lightning_edit.errors import EditError
from lightning_edit.export.card import model_card
from lightning_edit.files import holds_something_else, replace_folder
from lightning_edit.functional.adapters import padded, truncation_error
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import Orientation

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
EDITS = "edits.json"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of max_lora_rank that vLLM accepts."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: for every edited module y += (x A) B, with one rank for all.

    Args:
        factors: Module name to A (fan_in, rank) and B (rank, fan_out), float32.
        rank: The rank.
        fan_in_fan_out: Whether the modules store their weights as (fan_in, fan_out), as Conv1D does.
        errors: Module name to the relative truncation error in Frobenius norm; 0 for exact ones.
        edits: The edits in it.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    fan_in_fan_out: bool
    errors: Mapping[str, float]
    edits: tuple[Edit, ...]

    @property
    def config(self) -> dict[str, Any]:
        """adapter_config.json: lora_alpha is the rank, so that the scale alpha / rank is 1."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.edits[-1].provenance.base.name,
            "revision": self.edits[-1].provenance.base.revision,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.factors),
            "fan_in_fan_out": self.fan_in_fan_out,
            "bias": "none",
            "inference_mode": True,
            "use_dora": False,
            "use_rslora": False,
            "modules_to_save": None,
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """adapter_model.safetensors: lora_A (rank, fan_in) and lora_B (fan_out, rank) of each module."""
        tensors = {}
        for name, (a, b) in self.factors.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.T.contiguous().cpu()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.T.contiguous().cpu()
        return tensors


def adapter_of(
    edit: Edit | EditSequence, model: LanguageModel, rank: int | None = None, max_error: float = 0.01
) -> Adapter:
    """Converts a weight edit, or a sequence of them, to one LoRA adapter.

    Factored changes are exact up to rounding to float32. Dense ones are truncated by a singular value decomposition.

    Args:
        edit: The edit or the sequence.
        model: The base model, for the orientation of its weights.
        rank: Rank of the adapter; defaults to the smallest of :data:`RANKS` that is exact enough.
        max_error: Largest relative error of a module's change in Frobenius norm.

    Raises:
        EditError: If an edit does not change weights, or no rank (or not the given one) is exact enough.
        BaseModelMismatchError: If an edit was made for another base model.
    """
    for one in edit.edits:
        one.check_mergeable("exported as a LoRA adapter")
        one.check(model)
    deltas = edit.weight_deltas()
    if not deltas:
        raise EditError("the edit changes nothing; there is nothing to export")
    sites = [model.layer_map.named_site(name) for name in deltas]
    for site in sites:
        if not site.reads_all_tokens:
            raise EditError(
                f"{site.name} is one expert of a mixture, which LoRA adapters cannot address; merge the edit instead"
            )
    factors = {name: delta.factors() for name, delta in deltas.items()}
    bounds = {name: 0.0 if delta.is_low_rank else max_error for name, delta in deltas.items()}
    chosen = rank or _smallest_rank(factors, bounds, max_error)
    errors = {name: truncation_error(a, chosen) for name, (a, _) in factors.items()}
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > max_error:
        raise EditError(
            f"rank {chosen} leaves {errors[worst]:.1%} of the change of {worst} out, more than {max_error:.1%}; give a "
            "higher rank, accept more (max_error), or merge the edit"
        )
    return Adapter(
        {name: padded(a, b, chosen) for name, (a, b) in factors.items()},
        chosen,
        all(site.orientation is Orientation.CONV1D for site in sites),
        errors,
        edit.edits,
    )


def _smallest_rank(factors: Mapping[str, tuple[Tensor, Tensor]], bounds: Mapping[str, float], max_error: float) -> int:
    """Returns the smallest accepted rank whose truncation error is within each module's bound.

    Raises:
        EditError: If there is none.
    """
    # If no rank keeps the factored changes exactly, they are truncated as well.
    for allowed in (bounds, dict.fromkeys(bounds, max_error)):
        for rank in RANKS:
            if all(truncation_error(a, rank) <= allowed[name] for name, (a, _) in factors.items()):
                return rank
    full = max(a.shape[1] for a, _ in factors.values())
    raise EditError(
        f"the change has rank {full}, and cut to rank {RANKS[-1]} it loses more than {max_error:.1%}; give a rank, "
        "accept more (max_error), or merge the edit"
    )


def save_adapter(adapter: Adapter, folder: str | Path) -> Path:
    """Saves an adapter as a folder that peft loads, with a card and the edits' origins.

    Raises:
        EditError: If the folder holds something other than an adapter.
    """
    folder = Path(folder)
    if holds_something_else(folder, CONFIG):
        raise EditError(f"{folder} exists and is not an adapter; choose a new folder")
    tensors = adapter.tensors
    with replace_folder(folder, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary / TENSORS, metadata={"format": "pt"})
        write_text(temporary / CONFIG, json.dumps(adapter.config, indent=2))
        write_text(temporary / EDITS, origins(adapter.edits))
        title = "LoRA adapter of an edited language model"
        write_text(temporary / "README.md", model_card(title, adapter.edits, _usage(folder), adapter.errors))
    return folder


def origins(edits: Sequence[Edit]) -> str:
    """Returns the provenance of edits as JSON."""
    return json.dumps([edit.provenance.to_dict() for edit in edits], indent=2, ensure_ascii=False)


def write_text(path: Path, text: str) -> None:
    """Writes a text file that ends with a newline."""
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _usage(folder: Path) -> str:
    return f"""\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, "{folder.name}")
```
"""
