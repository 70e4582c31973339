"""Tokenises prompts and targets, and finds the exact token spans of target and subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_edit.errors import ConfigurationError, TokenizationError
from lightning_edit.records import Span

TextKey = tuple[int, ...]
"""Number of target tokens and all token ids of a text, which determine its hidden states, answers and gradients."""


@dataclass(frozen=True)
class EncodedText:
    """One tokenised prompt with its target.

    Args:
        ids: Token ids of prompt and target, tokenised jointly.
        target: Span of the target's tokens in ``ids`` (start, end); empty without a target.
        subject: Span of the subject's tokens in ``ids``, or None.
    """

    ids: tuple[int, ...]
    target: Span
    subject: Span | None = None

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Token ids of the target."""
        return self.ids[slice(*self.target)]

    @property
    def key(self) -> TextKey:
        """See :data:`TextKey`."""
        return (len(self.target_ids), *self.ids)


@dataclass
class TokenBatch:
    """Padded token ids, ready for a model.

    Shapes: R rows of S positions.

    Args:
        input_ids: (R, S) int64.
        attention_mask: (R, S) int64, one for real tokens.
        position_ids: (R, S) int64, counted over real tokens.
        target_mask: (R, S) bool, true at the target's tokens.
        subject_mask: (R, S) bool, true at the subject's tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    target_mask: Tensor
    subject_mask: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """Returns the batch on ``device``."""
        return self._map(lambda value: value.to(device))

    def pin_memory(self) -> TokenBatch:
        """Returns the batch in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        return TokenBatch(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def select(self, rows: Tensor) -> TokenBatch:
        """Selects rows, and drops the columns that are padding in all of them.

        Args:
            rows: (K) int64.
        """
        used = self.attention_mask[rows].any(0)
        return self._map(lambda value: value[rows][:, used])

    def chunks(self, tokens: int, enough: int | None = None) -> Iterator[Tensor]:
        """Splits the rows into chunks of similar length.

        Args:
            tokens: Maximum number of padded tokens per chunk; a longer row is a chunk of its own.
            enough: See :func:`similar_lengths`.

        Yields:
            (K) int64 rows of a chunk, ascending; without ``enough`` all rows at once if they fit.
        """
        if enough is None and self.input_ids.numel() <= tokens:
            yield torch.arange(len(self), device=self.input_ids.device)
            return
        for part in similar_lengths(self.attention_mask.sum(1).tolist(), tokens, enough=enough):
            yield torch.tensor(sorted(part), device=self.input_ids.device)

    def parts(self, enough: int) -> Iterator[tuple[Tensor, TokenBatch]]:
        """Splits the batch into parts of similar length, which have little padding.

        Args:
            enough: See :func:`similar_lengths`.

        Yields:
            (K) int64 rows of a part, ascending, and the part.
        """
        for rows in self.chunks(self.input_ids.numel(), enough):
            yield rows, self.select(rows)

    @cached_property
    def keys(self) -> list[TextKey]:
        """The key of each row; see :data:`TextKey`."""
        targets, masks = self.target_lengths.tolist(), self.attention_mask.tolist()
        rows = zip(targets, self.input_ids.tolist(), masks, strict=True)
        return [(target, *(id for id, real in zip(ids, mask, strict=True) if real)) for target, ids, mask in rows]

    @property
    def answer_mask(self) -> Tensor:
        """(R, S) bool: the positions whose output predicts a target token, one to the left of ``target_mask``."""
        return torch.cat([self.target_mask[:, 1:], torch.zeros_like(self.target_mask[:, :1])], dim=1)

    @property
    def target_ids(self) -> Tensor:
        """(N,) int64: the target tokens of all rows, row after row, in the order of ``answer_mask``."""
        return self.input_ids[self.target_mask]

    @property
    def target_rows(self) -> Tensor:
        """(N,) int64: the row of each of :attr:`target_ids`."""
        return self.target_mask.nonzero()[:, 0]

    @property
    def target_lengths(self) -> Tensor:
        """(R,) int64: number of target tokens of each row."""
        return self.target_mask.sum(1)


_MAX_LENGTH_RATIO = 1.25
"""A batch that is large enough takes no text longer than this multiple of its shortest one."""


def similar_lengths(
    lengths: Sequence[int], tokens: int, key: Sequence[int] | None = None, enough: int | None = None
) -> Iterator[list[int]]:
    """Groups texts of similar length into batches.

    Args:
        lengths: Length of each text.
        tokens: Maximum number of padded tokens per batch; a longer text is a batch of its own.
        key: Sort key that precedes the length.
        enough: Number of padded tokens after which a batch is closed if the next text is much longer than its shortest
            one, to save padding; by default batches are closed only at the limit.

    Yields:
        The indices of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (key[index] if key else 0, lengths[index]))
    batch: list[int] = []
    longest = 0
    for index in order:
        padded = longest * len(batch)
        longest = max(longest, lengths[index])
        is_full = longest * (len(batch) + 1) > tokens
        is_enough = enough is not None and padded >= enough and lengths[index] > _MAX_LENGTH_RATIO * lengths[batch[0]]
        if batch and (is_full or is_enough):
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


class PromptEncoder:
    """Tokenises prompts and targets, the same way for editing and evaluation.

    Prompt and target are joined by one separator (a space), unless the prompt ends or the target starts with white
    space, or a chat template is used, which ends where the answer starts. They are tokenised jointly, so that a
    byte-level BPE's leading space belongs to the target's first token. The ids before the target are always those of
    the prompt alone, from which free generation starts: if a token straddles the boundary, the target is tokenised
    separately. The target's tokens must decode to the target.

    Args:
        tokenizer: A Hugging Face tokenizer.
        chat_template: Whether to render prompts as a user's turn of the tokenizer's chat template.
        padding_side: Default padding side of :meth:`collate`.
        separator: Text between prompt and target; empty for scripts without spaces.
        vocabulary: Number of the model's embeddings, which some tokenizers' padding token exceeds.
        end_token: Whether to append the end-of-text token to every target.

    Raises:
        ConfigurationError: If the tokenizer lacks the requested chat template or end-of-text token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: bool = False,
        padding_side: Literal["left", "right"] = "right",
        separator: str = " ",
        vocabulary: int | None = None,
        end_token: bool = False,
    ) -> None:
        if end_token and tokenizer.eos_token_id is None:
            raise ConfigurationError("editor.end_token: the tokenizer has no end-of-text token; set it to false")
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError("chat_template: the tokenizer has no chat template; set it to false")
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.padding_side = padding_side
        self.separator, self.vocabulary, self.end_token = separator, vocabulary, end_token

    def with_end_token(self) -> PromptEncoder:
        """Returns the same encoder, which appends the end-of-text token to every target.

        Raises:
            ConfigurationError: If the tokenizer has none.
        """
        return PromptEncoder(
            self.tokenizer, self.chat_template, self.padding_side, self.separator, self.vocabulary, end_token=True
        )

    @property
    def pad_id(self) -> int:
        """The id that fills padded positions; masked everywhere, so any id with an embedding will do."""
        for id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if id is not None and (self.vocabulary is None or id < self.vocabulary):
                return int(id)
        return 0

    def render(self, prompt: str) -> str:
        """Returns the model's input text for ``prompt``."""
        if not self.chat_template:
            return prompt
        turns = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def encode(self, prompt: str, target: str = "", subject_span: Span | None = None) -> EncodedText:
        """Tokenises a prompt and its target jointly.

        Args:
            prompt: The prompt.
            target: The target; empty for a prompt alone.
            subject_span: Characters of the subject in the prompt.

        Raises:
            TokenizationError: If the target does not survive the round trip through the tokenizer, or the subject's
                tokens are not found.
        """
        text = self.render(prompt)
        joined = text + self._separator(text, target) + target
        ids, offsets = self._tokenize(joined)
        prompt_ids = self._tokenize(text)[0] if target else ids
        if ids[: len(prompt_ids)] != prompt_ids:
            ids = self._encode_separately(text, joined, prompt_ids)
            offsets = None
        encoded = EncodedText(tuple(ids), (len(prompt_ids), len(ids)))
        self._check_target(encoded, target, joined)
        if self.end_token and target:
            end = int(self.tokenizer.eos_token_id)
            encoded = EncodedText((*encoded.ids, end), (encoded.target[0], encoded.target[1] + 1))
        if subject_span is None:
            return encoded
        start = self._place_in_chat(text, prompt) if self.chat_template else 0
        span = (subject_span[0] + start, subject_span[1] + start)
        return replace(encoded, subject=self._subject_tokens(text, span, offsets, prompt_ids))

    @staticmethod
    def _place_in_chat(text: str, prompt: str) -> int:
        place = text.rfind(prompt)
        if place < 0:
            raise TokenizationError(
                f"the chat template does not hold the prompt {prompt!r} as it is, so that its subject cannot be found; "
                "many templates strip white space: take it off the prompt's ends"
            )
        return place

    def _separator(self, text: str, target: str) -> str:
        if not target or self.chat_template or text[-1:].isspace() or target[:1].isspace():
            return ""
        return self.separator

    def _tokenize(self, text: str) -> tuple[list[int], list[Span] | None]:
        options = {"add_special_tokens": not (self.chat_template or self._begins_with_bos(text))}
        if not self.tokenizer.is_fast:
            return self._without_end(list(self.tokenizer(text, **options)["input_ids"]), text), None
        encoded = self.tokenizer(text, return_offsets_mapping=True, **options)
        ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
        # Some tokenizers append an end-of-text token, but nothing may follow the target. An initial BOS token stays.
        specials = set(self.tokenizer.all_special_ids)
        beginning = [self.tokenizer.bos_token_id]
        while ids and ids != beginning and ids[-1] in specials and offsets[-1][0] == offsets[-1][1]:
            ids.pop()
            offsets.pop()
        return ids, offsets

    def _begins_with_bos(self, text: str) -> bool:
        """Whether a text already begins with the beginning-of-text token, which must not be added twice."""
        bos = self.tokenizer.bos_token
        return bool(bos) and text.startswith(str(bos))

    def _without_end(self, ids: list[int], text: str) -> list[int]:
        """Strips the end-of-text token that a slow tokenizer, which has no offsets, appended to a text."""
        end = self.tokenizer.eos_token_id
        if end is None or text.endswith(str(self.tokenizer.eos_token)):
            return ids
        while len(ids) > 1 and ids[-1] == end:
            ids.pop()
        return ids

    def _encode_separately(self, text: str, joined: str, prompt_ids: list[int]) -> list[int]:
        """Tokenises the target separately, for when a token straddles the boundary."""
        rest = self.tokenizer(joined[len(text) :], add_special_tokens=False)["input_ids"]
        return prompt_ids + list(rest)

    def _check_target(self, encoded: EncodedText, target: str, joined: str) -> None:
        decoded = self.decode(encoded.target_ids)
        if decoded.strip() != target.strip():
            raise TokenizationError(
                f"the text {joined!r} does not survive its tokenizer: its target {target!r} comes back as {decoded!r}; "
                "the tokenizer has no tokens for it, or normalises it"
            )

    def _subject_tokens(self, text: str, span: Span, offsets: list[Span] | None, prompt_ids: list[int]) -> Span:
        """Finds the tokens that overlap the subject's characters."""
        if offsets is None:
            offsets = self._tokenize(text)[1]
        if offsets is None:
            raise TokenizationError(
                f"a subject's tokens can only be found with a fast tokenizer; {type(self.tokenizer).__name__} is slow"
            )
        inside = [
            index
            for index, (start, end) in enumerate(offsets[: len(prompt_ids)])
            if start < span[1] and end > span[0] and text[max(start, span[0]) : min(end, span[1])].strip()
        ]
        if not inside:
            raise TokenizationError(f"no token of {text!r} covers the subject {text[slice(*span)]!r}")
        return inside[0], inside[-1] + 1

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ``ids`` without special tokens, leaving white space unchanged."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def collate(
        self, encoded: Sequence[EncodedText], padding_side: Literal["left", "right"] | None = None
    ) -> TokenBatch:
        """Pads texts to the same length.

        Args:
            encoded: At least one text.
            padding_side: "left" or "right"; the encoder's default if None.
        """
        side = padding_side or self.padding_side
        length = max(len(text.ids) for text in encoded)
        shape = (len(encoded), length)
        ids = torch.full(shape, self.pad_id, dtype=torch.int64)
        attention = torch.zeros(shape, dtype=torch.int64)
        target, subject = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row, text in enumerate(encoded):
            offset = length - len(text.ids) if side == "left" else 0
            ids[row, offset : offset + len(text.ids)] = torch.tensor(text.ids, dtype=torch.int64)
            attention[row, offset : offset + len(text.ids)] = 1
            target[row, offset + text.target[0] : offset + text.target[1]] = True
            if text.subject is not None:
                subject[row, offset + text.subject[0] : offset + text.subject[1]] = True
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        return TokenBatch(ids, attention, positions, target, subject)
