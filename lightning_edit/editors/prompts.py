"""Requests inside context prompts, tokenised, with the positions that locate-then-edit methods need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_edit.errors import ConfigurationError, RequestError
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import EncodedText

PLACEHOLDER = "{}"
BARE = PLACEHOLDER
"""The context that adds nothing."""


@dataclass(frozen=True)
class Contexts:
    """Texts around a prompt, which make its key and its value robust (Meng et al. 2022, section 3.1).

    Args:
        groups: Templates with "{}" in place of the prompt. Averages run over each group first, and then over groups.
    """

    groups: tuple[tuple[str, ...], ...] = ((BARE,),)

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(PLACEHOLDER) != 1:
                raise ConfigurationError(f"contexts: expected {PLACEHOLDER} once in each template, found {template!r}")
        if not self.templates or self.templates[0] != BARE:
            raise ConfigurationError(f"contexts: the first template must be {BARE!r}, the prompt by itself")

    @property
    def templates(self) -> list[str]:
        """All templates, group by group."""
        return [template for group in self.groups for template in group]

    @property
    def weights(self) -> torch.Tensor:
        """(N) float64 weight of each template in a mean over groups of means."""
        values = [1 / (len(self.groups) * len(group)) for group in self.groups for _ in group]
        return torch.tensor(values, dtype=torch.float64)


def in_context(model: LanguageModel, request: EditRequest, template: str, target: str = "") -> EncodedText:
    """A request's prompt inside a context, tokenised with its subject's span.

    Raises:
        RequestError: If the request has no subject.
        TokenizationError: If the subject cannot be found in the token ids.
    """
    span = request.subject_span
    if span is None:
        raise RequestError(f"the request {request.id or request.prompt!r} has no subject")
    before, after = template.split(PLACEHOLDER)
    shifted = (span[0] + len(before), span[1] + len(before))
    return model.encoder.encode(before + request.prompt + after, target, shifted)


def last_subject_token(text: EncodedText) -> int:
    """Position of the subject's last token, counted from the text's first token."""
    if text.subject is None:
        raise RequestError("the text was tokenised without its subject")
    return text.subject[1] - 1


def every_context(
    model: LanguageModel, requests: Sequence[EditRequest], templates: Sequence[str], with_targets: bool = False
) -> list[EncodedText]:
    """All requests inside all templates, request by request."""
    return [
        in_context(model, request, template, request.target if with_targets else "")
        for request in requests
        for template in templates
    ]
