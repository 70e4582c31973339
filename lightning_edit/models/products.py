"""Matrix products of linear maps with oneDNN, on CPUs whose AVX-512 units MKL does not use.

On the CPU, torch multiplies float32 matrices with MKL, which uses AVX-512 only on Intel processors. oneDNN, which
comes with torch, uses it wherever available: on an AMD EPYC its products take a third to half of the time.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

_TOLERANCE = 1e-5
"""Largest relative difference between two products that counts as rounding in float32."""
_MIN_PRODUCT = 1_000_000
"""Minimum number of multiplications for using oneDNN, whose calls have an overhead of 10 microseconds."""


def use_wide_products(model: nn.Module) -> None:
    """Makes the frozen linear maps of a model use oneDNN where it is faster.

    Products in float32 change by rounding. Other dtypes, trained weights, autocast and maps whose forward was already
    replaced are not affected. No weight is copied or packed. oneDNN caches what it compiles for a shape: half a
    megabyte for each of the last 1,024. The environment variables ``LRU_CACHE_CAPACITY`` and
    ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``, read at the first product, limit the cache.
    ``torch.backends.mkldnn.flags(enabled=False)`` turns oneDNN off within a context.

    Args:
        model: The model; each of its ``torch.nn.Linear`` and ``Conv1D`` gets another forward.
    """
    if not _is_faster_here():
        return
    for module in model.modules():
        if type(module) in _FORWARDS and "forward" not in vars(module):
            # A method is copied and pickled with its module.
            vars(module)["forward"] = MethodType(_FORWARDS[type(module)], module)


@cache
def _is_faster_here() -> bool:
    """Whether oneDNN is faster and correct on this machine; warns if its result differs from torch's."""
    problem = _problem() if _mkl_is_narrow() else None
    if problem is not None:
        warnings.warn(f"oneDNN matrix products are not used ({problem}); torch's default is", stacklevel=3)
    return problem is None and _mkl_is_narrow()


def _mkl_is_narrow() -> bool:
    """Whether MKL leaves AVX-512 unused on this CPU, as far as torch can tell."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    # Older versions of torch lack this function.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_f")) and "Intel" not in str(capabilities.get("cpu_name"))


def _problem() -> str | None:
    """Compares one oneDNN product with torch's; returns what is wrong, or None."""
    x, weight = (torch.linspace(-1, 1, rows * 96).sin().view(rows, 96) for rows in (5, 64))
    expected = linear(x, weight)
    try:
        product = _product(x, weight, None)
    except (AttributeError, RuntimeError) as error:
        return repr(error)
    difference = float((product - expected).norm() / expected.norm())
    return None if difference <= _TOLERANCE else f"they differ by {difference:.1e} (relative)"


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes x Wᵀ + b for x (…, M), weight (N, M) and bias (N)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _FrozenProduct(torch.autograd.Function):
    """Product with a frozen weight, differentiable any number of times with respect to x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return multiplied(gradient, weight.T), None, None


def multiplied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x Wᵀ + b, with oneDNN if it is faster: for large float32 matrices with frozen W and b.

    Args:
        x: (…, M).
        weight: (N, M).
        bias: (N), or None.
    """
    if not _serves(x, weight, bias):
        return linear(x, weight, bias)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _product(x, weight, bias)
    product: Tensor = _FrozenProduct.apply(x, weight, bias)
    return product


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * len(weight) >= _MIN_PRODUCT
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and bool(torch.backends.mkldnn.enabled)
        and _is_faster_here()
    )


def _linear_forward(module: nn.Linear, input: Tensor) -> Tensor:
    return multiplied(input, module.weight, module.bias)


def _conv1d_forward(module: Conv1D, x: Tensor) -> Tensor:
    return multiplied(x, module.weight.T, module.bias)


_FORWARDS: dict[type[nn.Module], Any] = {nn.Linear: _linear_forward, Conv1D: _conv1d_forward}
