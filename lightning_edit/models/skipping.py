"""Skips blocks in a model's forward pass, or replaces the hidden states that enter a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def skipped(blocks: Sequence[nn.Module], returns: int) -> Iterator[None]:
    """Makes blocks return their input unchanged within the context.

    Args:
        blocks: The blocks.
        returns: Length of the tuple that a block returns; 0 if it returns a tensor.
    """

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *([None] * (returns - 1))) if returns else hidden

    with ExitStack() as stack:
        for block in blocks:
            # With a device map, the instance already has a replaced forward.
            stack.callback(_restore, block, vars(block).get("forward"))
            vars(block)["forward"] = pass_on
        yield


def _restore(block: nn.Module, earlier: Any) -> None:
    if earlier is not None:
        vars(block)["forward"] = earlier
    else:
        # Deleting it from the instance restores the class's forward.
        del vars(block)["forward"]


@contextmanager
def entering(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Replaces the hidden states that enter a block within the context.

    Args:
        block: The block.
        hidden: (R, S, hidden size).
    """

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    handle = block.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
