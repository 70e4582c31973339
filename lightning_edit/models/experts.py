"""Makes single experts editable in mixtures that store all experts in one tensor, as in transformers 5.

There, the output projections of E experts are one parameter ``down_proj`` of shape (E, fan_out, fan_in), or
(E, fan_in, fan_out), of a module that computes all experts at once. :func:`expert_slice` exposes one expert's part as
a linear map with an input, an output and a weight, so that it can be an edit site. Modules with such a slice compute
their experts one after another; all other modules keep their implementation. Llama 4 passes all tokens, already
weighted, to each expert and does not use transformers' interface of expert implementations: it also keeps its
implementation, and a hook replaces the expert's output with the slice's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lightning_edit.errors import LayerMapError

PARAMETER = "down_proj"
"""Name of the parameter that holds the experts' output projections."""
_IMPLEMENTATION = "lightning_edit"
_SLICES = "lightning_edit_slices"


class ExpertSlice(nn.Module):
    """The output projection of one expert: y = x Wᵀ + b, where W and b are views of the mixture's parameters.

    Its input has all tokens, with zeros for those routed to other experts. It has no parameters of its own.

    Args:
        experts: The module that holds all experts of a layer.
        index: Which expert.
    """

    def __init__(self, experts: nn.Module, index: int) -> None:
        super().__init__()
        # The tuple keeps the parent module from being registered as a child.
        self._experts: tuple[Any] = (experts,)
        self.index = index
        self.out_features, self.in_features = self.weight.shape

    @property
    def weight(self) -> Tensor:
        """(fan_out, fan_in), a view."""
        weight: Tensor = self._experts[0].down_proj[self.index]
        return weight.T if _is_transposed(self._experts[0]) else weight

    @property
    def bias(self) -> Tensor | None:
        """(fan_out), a view, or None."""
        return self._experts[0].down_proj_bias[self.index] if getattr(self._experts[0], "has_bias", False) else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, fan_in) to (N, fan_out)."""
        return F.linear(x, self.weight, self.bias)


def has_slices(module: nn.Module) -> bool:
    """Whether a module holds the experts of a layer in a form that :func:`expert_slice` can address."""
    weight = getattr(module, PARAMETER, None)
    # With a norm after the projection, the slice's output would not be added to the residual stream as is.
    is_plain = not getattr(module, "has_post_expert_norm", False)
    known = _chooses_implementation(module) or _gives_all_tokens(module)
    return known and is_plain and isinstance(weight, Tensor) and weight.dim() == 3


def _chooses_implementation(module: nn.Module) -> bool:
    """Whether a mixture uses transformers' interface of expert implementations."""
    return all(hasattr(module, name) for name in ("is_transposed", "has_bias", "has_gate", "_apply_gate"))


def _gives_all_tokens(module: nn.Module) -> bool:
    """Whether a mixture's forward passes all tokens to each expert, as in Llama 4: (E · N, hidden size)."""
    return all(hasattr(module, name) for name in ("num_experts", "expert_dim", "gate_up_proj", "act_fn"))


def _is_transposed(experts: Any) -> bool:
    return bool(getattr(experts, "is_transposed", True))


def expert_slice(experts: Any, index: int) -> ExpertSlice:
    """Returns one expert's output projection, created on first use.

    Args:
        experts: The module that holds all experts of a layer; see :func:`has_slices`.
        index: Which expert.

    Raises:
        LayerMapError: If there is no such expert.
    """
    count = len(experts.down_proj)
    if not 0 <= index < count:
        raise LayerMapError(f"expert {index} does not exist: the layer has the experts 0 to {count - 1}")
    if not hasattr(experts, _SLICES):
        experts.add_module(_SLICES, nn.ModuleDict())
        if _chooses_implementation(experts):
            _use_slices(experts.config)
        else:
            experts.register_forward_hook(_replace_slice_outputs)
    slices: nn.ModuleDict = getattr(experts, _SLICES)
    if str(index) not in slices:
        slices[str(index)] = ExpertSlice(experts, index)
    part = slices[str(index)]
    assert isinstance(part, ExpertSlice)
    return part


def _use_slices(config: Any) -> None:
    """Makes a model's mixtures use slices, and otherwise their configured implementation."""
    chosen = str(config._experts_implementation)
    if chosen.startswith(_IMPLEMENTATION):
        return
    # The config is saved with the model, so the name has to include the original implementation.
    name = f"{_IMPLEMENTATION}-{chosen}"
    ALL_EXPERTS_FUNCTIONS.register(name, partial(experts_forward, chosen))
    config._experts_implementation = name


def experts_forward(
    otherwise: str, self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Computes the experts of a layer, using slices where they exist.

    Args:
        otherwise: Name of the implementation for modules without slices.
        self: The module that holds the experts, as passed by transformers.
        hidden_states: (N, hidden size).
        top_k_index: (N, K) int64, the experts of each token.
        top_k_weights: (N, K) weights of these experts.

    Returns:
        (N, hidden size), the weighted sum of the experts' outputs.
    """
    if not hasattr(self, _SLICES):
        original = type(self).forward.__wrapped__
        implementation = ALL_EXPERTS_FUNCTIONS.get_interface(otherwise, original)
        output: Tensor = implementation(self, hidden_states, top_k_index, top_k_weights)
        return output
    slices: nn.ModuleDict = getattr(self, _SLICES)
    total = torch.zeros_like(hidden_states)
    for index in range(len(self.down_proj)):
        tokens, choices = torch.where(top_k_index == index)
        key = _key(self, hidden_states[tokens], index)
        if str(index) in slices:
            # All tokens are passed, so that hooks find each token at its position in the batch.
            every_key = key.new_zeros(len(hidden_states), key.shape[-1]).index_put((tokens,), key)
            weights = top_k_weights.new_zeros(len(hidden_states)).index_put((tokens,), top_k_weights[tokens, choices])
            total = total + (slices[str(index)](every_key) * weights[:, None]).to(total.dtype)
        elif len(tokens):
            weighted = ExpertSlice(self, index)(key) * top_k_weights[tokens, choices, None]
            total = total.index_add(0, tokens, weighted.to(total.dtype))
    return total


def _replace_slice_outputs(experts: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Replaces the outputs of experts that have a slice with the slice's: (E · N, hidden size)."""
    inputs = args[0].view(len(experts.down_proj), -1, args[0].shape[-1])
    outputs = list(output.view(len(inputs), -1, output.shape[-1]))
    for index, part in getattr(experts, _SLICES).items():
        gate, up = (inputs[int(index)] @ experts.gate_up_proj[int(index)]).chunk(2, dim=-1)
        outputs[int(index)] = part(up * experts.act_fn(gate))
    return torch.cat(outputs)


def _key(experts: Any, hidden_states: Tensor, index: int) -> Tensor:
    """Computes the input of an expert's output projection."""
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    weight = getattr(experts, name)[index]
    bias = getattr(experts, f"{name}_bias")[index] if experts.has_bias else None
    projected = F.linear(hidden_states, weight.T if experts.is_transposed else weight, bias)
    key: Tensor = experts._apply_gate(projected) if experts.has_gate else experts.act_fn(projected)
    return key
