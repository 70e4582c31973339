"""Finds the editable linear maps of a language model from its structure."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_edit.errors import LayerMapError
from lightning_edit.models.experts import PARAMETER, expert_slice, has_slices


class Orientation(StrEnum):
    """How a module stores its weight."""

    LINEAR = "linear"
    """(fan_out, fan_in), as in torch.nn.Linear: y = x Wᵀ."""
    CONV1D = "conv1d"
    """(fan_in, fan_out), as in GPT-2's Conv1D: y = x W."""


@dataclass(frozen=True)
class EditSite:
    """One linear map that can be edited.

    Args:
        name: Full name of the module in the model.
        module: The module.
        layer: Index of its block.
        fan_in: Size of its input.
        fan_out: Size of its output.
        orientation: How its weight is stored.
        reads_all_tokens: False for an expert of a mixture, whose input is zero for tokens routed to other experts.
    """

    name: str
    module: nn.Module
    layer: int
    fan_in: int
    fan_out: int
    orientation: Orientation
    reads_all_tokens: bool = True

    @property
    def weight(self) -> Tensor:
        """The module's weight, in its own orientation."""
        weight = self.module.weight
        if not isinstance(weight, Tensor):
            raise LayerMapError(f"{self.name} has no weight tensor; name another edit site")
        return weight

    def oriented(self, delta: Tensor) -> Tensor:
        """Converts a change (fan_in, fan_out) to the orientation of the module's weight."""
        return delta.T if self.orientation is Orientation.LINEAR else delta


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map with known orientation."""
    return isinstance(module, Conv1D) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _fans(module: nn.Module) -> tuple[int, int, Orientation]:
    if isinstance(module, Conv1D):
        fan_in, fan_out = module.weight.shape
        return int(fan_in), int(fan_out), Orientation.CONV1D
    linear: Any = module
    return int(linear.in_features), int(linear.out_features), Orientation.LINEAR


def _mixes_positions(module: nn.Module) -> bool:
    """Whether a module's forward takes an attention mask: attention and state-space mixers do, an MLP does not."""
    return "attention_mask" in inspect.signature(module.forward).parameters


class LayerMap:
    """The blocks of a causal language model and the edit sites in them.

    The blocks are the module list whose length is the configuration's number of layers. The default edit site of a
    block is its MLP's output projection: the only linear map to the hidden size outside every submodule that takes an
    attention mask. If there is none or more than one (mixture of experts, state-space mixers), the map raises an error
    that lists the candidates.

    Args:
        model: A Hugging Face causal language model.
        site: Name of the edit site with "{}" for the layer's index, for models with an ambiguous structure, such as
            "model.layers.{}.mlp.down_proj".

    Raises:
        LayerMapError: If the blocks cannot be found.
    """

    def __init__(self, model: PreTrainedModel, site: str | None = None) -> None:
        self._modules = dict(model.named_modules())
        self._config: Any = model.config.get_text_config()
        self.site_pattern = site
        self.blocks_name: str = self._find_blocks()
        self.blocks: Sequence[nn.Module] = list(self._modules[self.blocks_name].children())

    def __len__(self) -> int:
        return len(self.blocks)

    def _find_blocks(self) -> str:
        depth = int(self._config.num_hidden_layers)
        lists: list[str] = [
            name
            for name, module in self._modules.items()
            if isinstance(module, nn.ModuleList)
            and len(module) == depth
            and any(is_linear(inner) for inner in module.modules())
        ]
        outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        if len(outermost) != 1:
            raise LayerMapError(
                f"expected one list of {depth} blocks in {self._config.model_type}, found {outermost or 'none'}; "
                "this model cannot be mapped"
            )
        return outermost[0]

    def block(self, layer: int) -> nn.Module:
        """Returns the block of a layer.

        Args:
            layer: Zero-based index; negative ones count from the last block.
        """
        return self.blocks[self.index(layer)]

    def index(self, layer: int) -> int:
        """Returns the zero-based index of a layer.

        Raises:
            LayerMapError: If the model has no such layer.
        """
        if not -len(self) <= layer < len(self):
            raise LayerMapError(f"layer {layer} does not exist: the model has the layers 0 to {len(self) - 1}")
        return layer % len(self)

    def site(self, layer: int) -> EditSite:
        """Returns the MLP output projection of a layer, or the site named by the user.

        Raises:
            LayerMapError: If the site is ambiguous; the message lists the candidates.
        """
        layer = self.index(layer)
        if self.site_pattern is not None:
            return self.named_site(self.site_pattern.format(layer))
        prefix = f"{self.blocks_name}.{layer}"
        candidates = self._output_projections(prefix, self.blocks[layer])
        experts, slices = self._fused_experts(prefix), self._expert_slices(prefix)
        if len(candidates) == 1 and not experts:
            return self.named_site(candidates[0])
        problem = f"layer {layer} of {self._config.model_type} has {len(candidates)} MLP output projections, expected 1"
        if experts:
            problem = (
                f"layer {layer} of {self._config.model_type} is a mixture of experts, whose projections are stored in "
                f"one tensor ({', '.join(experts)}){'' if slices else ', and cannot be edited one by one'}"
            )
        everything = self._writes_to_residual(prefix, candidates) + slices
        if not everything:
            raise LayerMapError(f"{problem}; it has no linear map that writes to the residual stream")
        raise LayerMapError(
            f"{problem}; name the edit site yourself (site: one of {everything}, with {{}} in place of the layer's "
            "index)"
        )

    def _fused_experts(self, prefix: str) -> list[str]:
        """Returns the names of a block's parameters that hold the projections of several experts."""
        block = self._modules[prefix]
        return [name for name, parameter in block.named_parameters() if parameter.dim() == 3 and "conv" not in name]

    def _writes_to_residual(self, prefix: str, outputs: Sequence[str]) -> list[str]:
        """Returns name patterns of a block's maps to the residual stream: MLP and attention outputs."""
        inside = [name for name in self._maps_to_hidden_names(prefix) if name not in outputs]
        names = [*outputs, *inside[-1:]] if len(inside) else list(outputs)
        return [name.replace(f"{prefix}.", f"{self.blocks_name}.{{}}.", 1) for name in names]

    def _expert_slices(self, prefix: str) -> list[str]:
        """Returns name patterns of the first and last expert's output projection in a block."""
        mixtures = [
            name for name, module in self._modules.items() if name.startswith(f"{prefix}.") and has_slices(module)
        ]
        patterns = [name.replace(f"{prefix}.", f"{self.blocks_name}.{{}}.", 1) for name in mixtures]
        counts = [len(getattr(self._modules[name], PARAMETER)) for name in mixtures]
        return [
            f"{pattern}.{PARAMETER}.{index}"
            for pattern, count in zip(patterns, counts, strict=True)
            for index in dict.fromkeys((0, count - 1))
        ]

    def _expert_site(self, name: str) -> EditSite | None:
        """Returns one expert's output projection, such as "model.layers.3.mlp.experts.down_proj.7", or None.

        Raises:
            LayerMapError: If the mixture has no such expert.
        """
        owner, _, index = name.rpartition(".")
        owner, _, parameter = owner.rpartition(".")
        experts = self._modules.get(owner)
        if parameter != PARAMETER or not index.isdigit() or experts is None or not has_slices(experts):
            return None
        module = expert_slice(experts, int(index))
        fan_in, fan_out, orientation = _fans(module)
        return EditSite(name, module, self._layer_of(name), fan_in, fan_out, orientation, reads_all_tokens=False)

    def attention_site(self, layer: int) -> EditSite:
        """Returns a layer's attention output projection: the last linear map to the hidden size inside a mixer.

        Raises:
            LayerMapError: If the layer has none.
        """
        layer = self.index(layer)
        prefix, block = f"{self.blocks_name}.{layer}", self.blocks[layer]
        outside = set(self._output_projections(prefix, block))
        inside = [name for name in self._modules if name.startswith(f"{prefix}.") and name not in outside]
        maps = [
            name
            for name in inside
            if is_linear(self._modules[name]) and _fans(self._modules[name])[1] == self._config.hidden_size
        ]
        if not maps:
            raise LayerMapError(f"layer {layer} of {self._config.model_type} has no attention output projection")
        return self.named_site(maps[-1])

    def named_site(self, name: str) -> EditSite:
        """Returns the linear map with a given name.

        Raises:
            LayerMapError: If there is no such module, it is not a linear map, or it is outside the blocks.
        """
        module = self._modules.get(name)
        expert = self._expert_site(name)
        if expert is not None:
            return expert
        if module is None or not is_linear(module):
            known = [known for known, module in self._modules.items() if is_linear(module)]
            raise LayerMapError(
                f"{name!r} is {'no module' if module is None else 'not a linear map'} of this model; "
                f"linear maps are {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"
            )
        if self._layer_of(name) < 0:
            raise LayerMapError(
                f"{name!r} is outside the blocks of this model; edit sites are linear maps in {self.blocks_name}, as "
                "the head is also used to compare predictions before and after an edit"
            )
        fan_in, fan_out, orientation = _fans(module)
        return EditSite(name, module, self._layer_of(name), fan_in, fan_out, orientation)

    def sites(self, wanted: Sequence[int | str]) -> list[EditSite]:
        """Returns edit sites by layer (its default site) or full module name, in the order of the layers."""
        sites = [self.site(entry) if isinstance(entry, int) else self.named_site(entry) for entry in wanted]
        if len({site.name for site in sites}) < len(sites):
            raise LayerMapError(f"an edit site is named twice in {list(wanted)}; name each once")
        return sorted(sites, key=lambda site: site.layer)

    def sites_ending_in(self, endings: Sequence[str], layers: Sequence[int] | None = None) -> list[EditSite]:
        """Returns the linear maps in blocks whose names have one of the endings, in the order of the layers.

        Args:
            endings: Ends of module names, such as "q_proj" or "mlp.down_proj".
            layers: The layers to search; all if None.

        Raises:
            LayerMapError: If an ending matches no linear map.
        """
        wanted = None if layers is None else {self.index(layer) for layer in layers}
        chosen: dict[str, EditSite] = {}
        for ending in endings:
            names = [
                name
                for name, module in self._modules.items()
                if is_linear(module)
                and f".{name}".endswith(f".{ending}")
                and self._layer_of(name) >= 0
                and (wanted is None or self._layer_of(name) in wanted)
            ]
            if not names:
                inside = sorted(
                    {name.rpartition(".")[2] for name, module in self._modules.items() if is_linear(module)}
                )
                raise LayerMapError(f"no linear map of this model ends in {ending!r}; their names end in {inside}")
            chosen.update({name: self.named_site(name) for name in names})
        return sorted(chosen.values(), key=lambda site: site.layer)

    def _layer_of(self, name: str) -> int:
        prefix = f"{self.blocks_name}."
        return int(name[len(prefix) :].split(".")[0]) if name.startswith(prefix) else -1

    def _output_projections(self, prefix: str, block: nn.Module) -> list[str]:
        mixers = [name for name, module in block.named_modules() if name and _mixes_positions(module)]
        return [
            f"{prefix}.{name}"
            for name, module in block.named_modules()
            if is_linear(module)
            and _fans(module)[1] == self._config.hidden_size
            and mixers
            and not any(name.startswith(f"{mixer}.") or name == mixer for mixer in mixers)
        ]

    def _maps_to_hidden_names(self, prefix: str) -> list[str]:
        return [
            name
            for name, module in self._modules.items()
            if name.startswith(f"{prefix}.") and is_linear(module) and _fans(module)[1] == self._config.hidden_size
        ]
