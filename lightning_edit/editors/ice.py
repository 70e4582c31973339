"""ICE: In-Context Editing (Cohen et al. 2023, arXiv 2307.12976)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_edit.editors.base import Capabilities, Editor, GroupChanges, Groups
from lightning_edit.editors.contradictions import Contradictions
from lightning_edit.edits import EditSequence, Match, Memory, RoutedChanges, Router, TextResponder
from lightning_edit.edits.memory import named_requests
from lightning_edit.errors import ConfigurationError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.records import EditRequest


class EveryPrompt(Router):
    """Routes every prompt to the only memory item; memories are joined by joining their texts."""

    def match(self, model: LanguageModel, prompts: Sequence[str], memory: Memory, allowed: Tensor) -> Match:
        """See :meth:`Router.match`."""
        everything = torch.ones(len(prompts), len(memory))
        return Match(everything, everything.bool())

    def join(self, first: Memory, second: Memory) -> Memory:
        """See :meth:`Router.join`; the later text is closer to the prompt."""
        both = first.all_requests + second.all_requests
        return Memory((named_requests(both),), texts=("".join(first.texts + second.texts),))


class ICE(Editor):
    """ICE: states the new facts in front of every prompt (Cohen et al. 2023, arXiv 2307.12976).

    The weights are unchanged; p'(y | x) = p(y | "Imagine that <fact>.", x), with the fact on its own line. For the
    format of KnowEdit's toolkit, "New Fact: <fact>" and "Prompt: x", set ``fact`` and ``query``.

    Args:
        fact: Template of a fact, with "{prompt}" and "{target}".
        query: Template of the model's input, with "{text}" for all facts and "{prompt}".

    Example:
        >>> from lightning_edit import EditRequest
        >>> edit = ICE().edit(model, [EditRequest("The capital of France is", target="Rome")])
        >>> edit.check_mergeable()
        Traceback (most recent call last):
        ...
        lightning_edit.errors.EditError: ...
    """

    capabilities = Capabilities(depends="nothing", mergeable=False)
    contradictions: Contradictions = "last"

    def __init__(self, fact: str = "Imagine that {prompt} {target}.\n", query: str = "{text}{prompt}") -> None:
        super().__init__()
        for name, template, wanted in (("fact", fact, "{target}"), ("query", query, "{prompt}")):
            if wanted not in template:
                raise ConfigurationError(f"editor.{name}: expected {wanted} in the template, found {template!r}")
        self.fact, self.query = fact, query

    def text_of(self, model: LanguageModel, requests: Sequence[EditRequest]) -> str:
        """Returns the text to put in front of prompts."""
        return "".join(stated(self.fact, request.prompt, request.target) for request in requests)

    def compute_changes(self, model: LanguageModel, groups: Groups, after: EditSequence) -> GroupChanges:
        """See :meth:`Editor.compute_changes`."""
        memories = [Memory((named_requests(group),), texts=(self.text_of(model, group),)) for group in groups]
        return GroupChanges(RoutedChanges(memories, EveryPrompt(), TextResponder(self.query)))


def stated(template: str, prompt: str, target: str) -> str:
    """Fills a template with a request's texts."""
    return template.replace("{prompt}", prompt).replace("{target}", target)
