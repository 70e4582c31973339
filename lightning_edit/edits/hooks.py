"""Adds a term to the output of edit sites, for the length of a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel

Term = Callable[[Tensor], Tensor]
"""Maps a site's input (..., fan_in) to what is added to its output (..., fan_out)."""


def refuse_compiled(model: nn.Module) -> None:
    """Refuses a compiled model: hooks added after compilation have no effect, and would do so silently.

    Raises:
        EditError: If the model or one of its modules is compiled.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise EditError(
                f"the model is compiled ({name or type(module).__name__}), where edits would have no effect; "
                "apply the edit to the model as it was before torch.compile"
            )


@contextmanager
def added_terms(model: LanguageModel, terms: Mapping[str, Term]) -> Iterator[None]:
    """Adds ``terms[site](x)`` to the output of each named site while the context is active; contexts nest.

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
        if isinstance(output, tuple):
            return (output[0] + term(args[0]).to(output[0].dtype), *output[1:])
        return output + term(args[0]).to(output.dtype)

    return hook
