"""WILD's prompt contexts, and how its answers are judged (Yang et al. 2025, arXiv 2502.11177)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lightning_edit import ranges
from lightning_edit.components import build
from lightning_edit.errors import ConfigurationError
from lightning_edit.judges import Case, Judge
from lightning_edit.records import WILD_CONTEXTS, WildContext
from lightning_edit.tokenization import PromptEncoder

_INSTRUCTION = "Please answer the question:\n\nQ: {}\nA:"
_SYSTEM = "You are a helpful, respectful and honest assistant."


@dataclass(frozen=True)
class WildSettings:
    """WILD's protocol: greedy generation after each question about edited facts, in several contexts.

    Args:
        contexts: "question" is the prompt alone, "instruction" adds an instruction before it, "chat" renders the latter
            with the tokenizer's chat template and a system message.
        new_tokens: Maximum length of a generation (the paper's 50); it counts up to its first "." or newline.
        judge: class_path and init_args of a :class:`lightning_edit.judges.Judge`, used in addition to the normalised
            exact match; none by default.

    Raises:
        ConfigurationError: If a context is unknown, or none is given.
    """

    contexts: tuple[WildContext, ...] = WILD_CONTEXTS
    new_tokens: int = 50
    judge: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        where = "evaluation.wild"
        ranges.not_empty(where, contexts=self.contexts)
        for context in self.contexts:
            ranges.one_of(WILD_CONTEXTS, where, contexts=context)
        ranges.at_least(1, where, new_tokens=self.new_tokens)

    def build_judge(self) -> Judge | None:
        """Builds the judge, or returns None if none is configured."""
        return build(self.judge, Judge, "evaluation.wild.judge") if self.judge is not None else None


def in_context(prompt: str, context: WildContext, encoder: PromptEncoder) -> str:
    """Puts a prompt into one of WILD's contexts.

    Args:
        prompt: The prompt.
        context: The context.
        encoder: The encoder, whose tokenizer's chat template is used.

    Raises:
        ConfigurationError: If the tokenizer has no chat template or one without system messages, or prompts are already
            rendered with it.
    """
    if context == "question":
        return prompt
    instructed = _INSTRUCTION.format(prompt)
    if context == "instruction":
        return instructed
    tokenizer = encoder.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigurationError("evaluation.wild.contexts: the tokenizer has no chat template; leave out 'chat'")
    if encoder.chat_template:
        raise ConfigurationError(
            "evaluation.wild.contexts: all prompts are rendered with the chat template already (chat_template: true); "
            "leave out 'chat'"
        )
    turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": instructed}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise ConfigurationError(
            f"evaluation.wild.contexts: the chat template refuses WILD's messages ({error}); leave out 'chat'"
        ) from error


def judged(
    judge: Judge, prompts: Sequence[str], aliases: Sequence[Sequence[str]], texts: Sequence[str]
) -> list[float | None]:
    """Asks a judge whether generated texts are correct; unclear verdicts become None and are counted in a warning.

    Args:
        judge: The judge.
        prompts: The questions, without their context.
        aliases: The acceptable answers of each.
        texts: The generated text for each.
    """
    cases = [Case(*case) for case in zip(prompts, map(tuple, aliases), texts, strict=True)]
    verdicts = judge.judge(cases)
    unclear = sum(math.isnan(verdict) for verdict in verdicts)
    if unclear:
        warnings.warn(f"the judge gave no clear verdict on {unclear} of {len(cases)} answers", stacklevel=2)
    return [None if math.isnan(verdict) else verdict for verdict in verdicts]
