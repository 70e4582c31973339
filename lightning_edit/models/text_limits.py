"""How long a text a model can take, and checks of texts before a run would fail on them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_edit.errors import TokenizationError
from lightning_edit.tokenization import EncodedText, PromptEncoder

_MOST_SPECIAL_TOKENS = 8
"""More than any tokenizer adds to a text."""
_POSITION_OFFSET = 2
"""Extra rows at the start of some position tables (OPT)."""


class TextLimits:
    """Checks that texts survive the tokenizer and that a model has positions for them.

    Args:
        model: The model.
        encoder: Encodes its texts.
        name: Its name, for messages.
    """

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, name: str) -> None:
        self.encoder = encoder
        self.name = name
        self.positions = _positions(model)
        """Maximum number of tokens in the model's configuration; None if unknown."""
        self.has_position_table = self.positions is not None and _has_position_table(model, self.positions)
        """Whether positions are embedded by a table, which limits the length."""
        self._warned = False

    def check_length(self, text: EncodedText, new_tokens: int = 0) -> None:
        """Raises if the model has no positions for a text; warns if it is longer than the configured maximum.

        Args:
            text: The text.
            new_tokens: Number of tokens to generate after it.

        Raises:
            TokenizationError: If the model's position table is shorter than the text.
        """
        length = len(text.ids) + new_tokens
        if self.positions is None or length <= self.positions:
            return
        message = (
            f"the text that begins with {self.encoder.decode(text.ids[:12])!r} takes {length} positions with its "
            f"target or generation, but {self.name} has {self.positions}"
        )
        if self.has_position_table:
            raise TokenizationError(f"{message}; shorten it")
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{message}; output beyond them may be unreliable (further such texts are not reported)", stacklevel=3
            )

    def check_text(self, prompt: str, target: str = "", new_tokens: int = 0) -> None:
        """Raises for a text that cannot be used.

        Only texts that may be too long, or that a tokenizer may change, are tokenised: a token has at least one byte.

        Args:
            prompt: The prompt.
            target: The target after it, if any.
            new_tokens: Number of tokens to generate after it.

        Raises:
            TokenizationError: If the text does not survive the tokenizer, or the model has no positions for it.
        """
        text = f"{prompt}{target}"
        rendered = self.encoder.render(prompt) if self.encoder.chat_template else prompt
        length = len(rendered.encode()) + len(target.encode()) + new_tokens + _MOST_SPECIAL_TOKENS
        is_short = self.positions is None or length <= self.positions
        if not (text.isascii() and is_short):
            self.check_length(self.encoder.encode(prompt, target), new_tokens)


def _positions(model: PreTrainedModel) -> int | None:
    config: Any = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(value) for value in named if value), None)


def _has_position_table(model: PreTrainedModel, positions: int) -> bool:
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    others = [table for table in tables if table is not model.get_input_embeddings()]
    return any(0 <= table.num_embeddings - positions <= _POSITION_OFFSET for table in others)
