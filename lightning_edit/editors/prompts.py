"""Context prompts of locate-then-edit methods, tokenised with the positions of the subject."""

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
"""The context of the bare prompt."""


@dataclass(frozen=True)
class Contexts:
    """Texts around a prompt that make its key and value robust (Meng et al. 2022, section 3.1).

    Args:
        groups: Templates with "{}" in place of the prompt. Averages are over each group first, and then over groups.
    """

    groups: tuple[tuple[str, ...], ...] = ((BARE,),)

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(PLACEHOLDER) != 1:
                raise ConfigurationError(f"contexts: expected {PLACEHOLDER} once in each template, found {template!r}")
        if not self.templates or self.templates[0] != BARE:
            raise ConfigurationError(f"contexts: the first template must be {BARE!r}, the prompt by itself")
        if not all(self.groups):
            raise ConfigurationError("contexts: a group without templates; leave it out")

    @property
    def templates(self) -> list[str]:
        """All templates, group by group."""
        return [template for group in self.groups for template in group]

    @property
    def weights(self) -> torch.Tensor:
        """(N) float64 weight of each template in the mean of the groups' means."""
        values = [1 / (len(self.groups) * len(group)) for group in self.groups for _ in group]
        return torch.tensor(values, dtype=torch.float64)


def in_context(model: LanguageModel, request: EditRequest, template: str, target: str = "") -> EncodedText:
    """Tokenises a request's prompt inside a context, with its subject's span.

    Raises:
        RequestError: If the request has no subject.
        TokenizationError: If the subject is not found in the token ids.
    """
    span = request.subject_span
    if span is None:
        raise RequestError(f"the request {request.id or request.prompt!r} has no subject")
    before, after = template.split(PLACEHOLDER)
    shifted = (span[0] + len(before), span[1] + len(before))
    return model.encoder.encode(before + request.prompt + after, target, shifted)


def last_subject_token(text: EncodedText) -> int:
    """Returns the position of the subject's last token in a text."""
    if text.subject is None:
        raise RequestError("the text was tokenised without its subject")
    return text.subject[1] - 1


def every_context(
    model: LanguageModel, requests: Sequence[EditRequest], templates: Sequence[str], with_targets: bool = False
) -> list[EncodedText]:
    """Tokenises all requests inside all templates, request by request."""
    return [
        in_context(model, request, template, request.target if with_targets else "")
        for request in requests
        for template in templates
    ]


@dataclass(frozen=True)
class Sampling:
    """How contexts are sampled from the model.

    Args:
        starts: Beginnings, one sample each; an empty one stands for the tokenizer's beginning-of-text token.
        lengths: Number of new tokens of each sample.
        separate_bare_prompt: Whether the bare prompt is a separate group, which weighs as much as all samples together.
    """

    starts: tuple[str, ...]
    lengths: tuple[int, ...]
    separate_bare_prompt: bool


PLAIN_SAMPLES = Sampling(("",) * 20, (5,) * 10 + (10,) * 10, separate_bare_prompt=False)
"""ROME's contexts: ten samples of five tokens and ten of ten (Meng et al. 2022, appendix B).

The authors' code includes the beginning-of-text token in these numbers.
"""
STARTED_SAMPLES = Sampling(("The", "Therefore", "Because", "I", "You"), (10,) * 5, separate_bare_prompt=True)
"""MEMIT's contexts: one sample for each of five beginnings (Meng et al. 2023); its lengths include the beginning."""


@dataclass(frozen=True)
class ContextSettings:
    """The contexts of a prompt, over which values are searched and keys are averaged.

    Args:
        templates: Texts with "{}" in place of the prompt, in groups; means are over groups first. By default they are
            sampled from the model, as by the methods' authors, and stored in the edit.
        seed: Seed of the sampling.
        separate_bare_prompt: Whether the bare prompt weighs as much in a mean over contexts as all sampled ones
            together. None follows the authors' code: yes for MEMIT and its successors, while ROME counts it as one of
            21. A model whose texts begin without a special token has unusual keys for a subject at the very beginning,
            and then little of ROME's update reaches it.

    Raises:
        ConfigurationError: If a template is invalid.
    """

    templates: Sequence[Sequence[str]] | None = None
    seed: int = 0
    separate_bare_prompt: bool | None = None

    def __post_init__(self) -> None:
        if self.templates is not None:
            object.__setattr__(self, "templates", [list(group) for group in self.templates])
            Contexts(tuple(tuple(group) for group in self.templates or ()))

    @property
    def configured(self) -> Contexts | None:
        """The configured contexts; None if they are sampled."""
        return None if self.templates is None else Contexts(tuple(tuple(group) for group in self.templates))


def sampled_contexts(model: LanguageModel, sampling: Sampling, seed: int) -> Contexts:
    """Samples contexts from the model (top-k with k = 5), without affecting the global random state.

    Args:
        model: The model.
        sampling: How to sample.
        seed: Seed of the sampling.
    """
    tokenizer = model.tokenizer
    begins_itself = bool(model.encoder.encode("").ids)
    first = "" if begins_itself else tokenizer.bos_token or tokenizer.eos_token or "The"
    starts = [start or first for start in sampling.starts]
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        texts = model.generate(starts, list(sampling.lengths), do_sample=True, top_k=5)
    samples = tuple(f"{_tidy(start + text)}. {PLACEHOLDER}" for start, text in zip(sampling.starts, texts, strict=True))
    return Contexts(((BARE,), samples) if sampling.separate_bare_prompt else ((BARE, *samples),))


def _tidy(text: str) -> str:
    """Removes line breaks and braces."""
    return " ".join(text.replace("{", " ").replace("}", " ").split())
