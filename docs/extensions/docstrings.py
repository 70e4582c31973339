"""Docstrings as Markdown: roles become links, and the symbols of equations stay what they are."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`~?([\w.]+)`")
_CODE = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)


class Docstrings(griffe.Extension):
    """Links a name in a role to where the reference documents it; a name that it does not document is shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring is not None:
            pieces = _ROLE.split(obj.docstring.value)
            names = [_link(obj, name) for name in pieces[1::2]]
            texts = [_plain(text) for text in pieces[::2]]
            obj.docstring.value = "".join(text + name for text, name in zip(texts, [*names, ""], strict=True))


def _link(obj: griffe.Object, name: str) -> str:
    head, _, rest = name.partition(".")
    try:
        path = name if head == "lightning_edit" else ".".join(filter(None, [obj.resolve(head), rest]))
    except griffe.NameResolutionError:
        return f"`{name}`"
    shown = name.rpartition(".")[2] if head == "lightning_edit" else name
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


def _plain(text: str) -> str:
    """A text in which Markdown finds no emphasis and no HTML; code is left alone."""
    pieces = _CODE.split(text)
    pieces[::2] = [piece.replace("*", r"\*").replace("<", "&lt;") for piece in pieces[::2]]
    return "".join(pieces)
