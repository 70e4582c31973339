"""Turns the cross-reference roles of the docstrings into links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Links a name in a role to where the reference documents it; a name that it does not document is shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda found: _link(obj, found[1]), obj.docstring.value)


def _link(obj: griffe.Object, name: str) -> str:
    head, _, rest = name.partition(".")
    try:
        path = name if head == "lightning_edit" else ".".join(filter(None, [obj.resolve(head), rest]))
    except griffe.NameResolutionError:
        return f"`{name}`"
    shown = name.rpartition(".")[2] if head == "lightning_edit" else name
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'
