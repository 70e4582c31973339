"""Forward hooks that add terms to the output of edit sites within a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel

Term = Callable[[Tensor, Tensor], Tensor]
"""Maps a site's input (..., fan_in) and its output (..., fan_out) to the term added to the output.

A term is built for one batch from its :class:`~lightning_edit.models.passes.BatchRows`, and includes what
differs between rows: their edit or memory entry, and where their prompt ends.
"""


def refuse_compiled(model: nn.Module) -> None:
    """Refuses a compiled model, where hooks added after compilation silently have no effect.

    Raises:
        EditError: If the model or one of its modules is compiled.
    """
    for name, module in model.named_modules():
        # transformers keeps its own compiled call, after a generation with a static cache.
        calls = (getattr(module, call, None) for call in ("_orig_mod", "_compiled_call_impl", "_compiled_call"))
        if any(call is not None for call in calls):
            raise EditError(
                f"the model is compiled ({name or type(module).__name__}), where edits would have no effect; "
                "apply the edit to the model as it was before torch.compile"
            )


@contextmanager
def added_terms(model: LanguageModel, terms: Mapping[str, Term]) -> Iterator[None]:
    """Adds ``terms[site](input, output)`` to the output of each named site while the context is active; contexts nest.

    The site's own output keeps its dtype. No weight is written.

    Raises:
        EditError: If the model is compiled.
        LayerMapError: If the model has no such site.
    """
    refuse_compiled(model.model)
    sites = [model.layer_map.named_site(name) for name in terms]
    with ExitStack() as stack:
        for site in sites:
            handle = site.module.register_forward_hook(_adding(terms[site.name]))
            stack.callback(handle.remove)
        yield


def _adding(term: Term) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        changed = first + term(args[0], first).to(first.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook
