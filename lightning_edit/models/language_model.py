"""A frozen Hugging Face language model that scores and generates."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_edit import ranges
from lightning_edit.errors import BaseModelMismatchError, ConfigurationError, EditError, TokenizationError
from lightning_edit.models.fingerprint import Fingerprint, Likeness, fingerprint
from lightning_edit.models.head import rate
from lightning_edit.models.layer_map import LayerMap
from lightning_edit.models.products import use_wide_products
from lightning_edit.models.skipping import skipped
from lightning_edit.tokenization import EncodedText, PromptEncoder, TokenBatch, similar_lengths


@dataclass(frozen=True)
class BatchRows:
    """The prompts of one padded batch, for edits that treat its rows differently.

    Args:
        indices: For each of R rows, the index of its prompt in the given list.
        prompt_ends: (R) int64 column of each prompt's last token in the padded batch.
        decoding: Whether the batch is being generated from. The prompts then end in the last column, and each later
            pass has one new column.
    """

    indices: list[int]
    prompt_ends: Tensor
    decoding: bool = False

    def after_prompt(self, length: int) -> Tensor:
        """Returns (R, length) bool: the columns from each prompt's last token on, in a pass of that length."""
        columns = torch.arange(length, device=self.prompt_ends.device)
        if self.decoding:
            return (columns == length - 1).expand(len(self.indices), -1)
        return columns >= self.prompt_ends[:, None]


_MOST_SPECIAL_TOKENS = 8
"""More than any tokenizer adds to a text."""
_PREFIX_SHARE = 4
"""A token whose keys and values are reused counts as this fraction of one that is run, for the size of batches."""
_SAMPLED_AT_ONCE = 64
"""Texts sampled per batch."""
_POSITION_OFFSET = 2
"""Extra rows at the start of some position tables (OPT)."""
BatchContext = Callable[[BatchRows], AbstractContextManager[object]]
"""Called with the rows of a padded batch; the context is active while the model runs on it."""


class ForwardPasses(Protocol):
    """Forward passes on a batch: full, or reusing what earlier passes computed."""

    def head_inputs(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        """See :meth:`LanguageModel.head_inputs`."""


class ReusedPrefix(ForwardPasses, Protocol):
    """Keys and values of tokens that all texts of a call begin with; see :mod:`lightning_edit.models.shared_prefix`."""

    def __len__(self) -> int:
        """Number of tokens."""

    def cache(self, rows: int) -> Any:
        """Returns keys and values for a batch, in a cache that can grow."""

    def continued(self, texts: Sequence[EncodedText]) -> tuple[Tensor, Tensor]:
        """Returns ids and attention mask (R, S) of whole texts, padded between prefix and suffix."""


@dataclass(frozen=True)
class Score:
    """Scores of one target after its prompt.

    Args:
        target_ids: The target's tokens (T).
        predicted_ids: The most probable token at each target position, given the earlier tokens (T).
        log_probs: Natural logarithm of each target token's probability (T).
        head_input: (T, hidden size): input of the language-model head at these positions; None if not requested.
        divergence: Mean KL(reference || this) in nats over the positions; None without a reference.
    """

    target_ids: tuple[int, ...]
    predicted_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    head_input: Tensor | None = None
    divergence: float | None = None


class LanguageModel:
    """A Hugging Face causal language model with tokenizer and layer map; frozen, in eval mode, not copied.

    Args:
        model: The model. Its parameters are frozen and it is put into eval mode.
        tokenizer: Its tokenizer.
        name: Hub id or path it was loaded from.
        revision: Hub revision, if any.
        site: Name of the edit site, for models whose structure is ambiguous; see :class:`LayerMap`.
        chat_template: Render prompts with the tokenizer's chat template.
        tokens_per_batch: Padded tokens per forward pass of :meth:`score` and :meth:`generate`.
        separator: Text between prompt and target; "" for scripts written without spaces.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        revision: str | None = None,
        site: str | None = None,
        chat_template: bool = False,
        tokens_per_batch: int = 2048,
        separator: str = " ",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        use_wide_products(self.model)
        self.tokenizer = tokenizer
        embeddings: Any = self.model.get_input_embeddings()
        vocabulary = int(embeddings.weight.shape[0])
        self.encoder = PromptEncoder(tokenizer, chat_template, separator=separator, vocabulary=vocabulary)
        self.layer_map = LayerMap(model, site)
        self.name = name or str(model.config.name_or_path) or str(model.config.model_type)
        self.revision = revision
        self.tokens_per_batch = tokens_per_batch
        self._block_returns: int | None = None
        self._applied: set[str] = set()
        self._running_calls = 0
        self._warned_about_length = False
        self.proofs: dict[tuple[str, int], int] = {}
        """Fast paths, by kind and layer, verified against the full forward pass, for texts up to so many tokens."""

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        embeddings: Any = self.model.get_input_embeddings()
        return torch.device(embeddings.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the hidden states."""
        embeddings: Any = self.model.get_input_embeddings()
        dtype: torch.dtype = embeddings.weight.dtype
        return dtype

    @property
    def is_placed(self) -> bool:
        """Whether device_map or a quantiser placed the weights."""
        return getattr(self.model, "hf_device_map", None) is not None or getattr(self.model, "is_quantized", False)

    def place(self, device: torch.device | str) -> None:
        """Moves the model to ``device``, unless device_map or quantisation placed it."""
        if not self.is_placed and self.device != torch.device(device):
            model: Any = self.model
            model.to(device)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the base model."""
        return fingerprint(self.model, self.tokenizer)

    def weights_changed(self) -> None:
        """Clears what was cached about the weights; call it after changing them."""
        vars(self).pop("fingerprint", None)
        self.proofs.clear()

    @contextmanager
    def marked_as_applied(self, ids: Sequence[str]) -> Iterator[None]:
        """Marks edits as applied to this model within the context.

        Args:
            ids: Ids of the edits.

        Raises:
            EditError: If one of them is already applied; its change would count twice.
        """
        twice = sorted(self._applied.intersection(ids))
        if twice:
            raise EditError(f"the edit {twice[0]} is applied to this model already; leave that context first")
        self._applied.update(ids)
        try:
            yield
        finally:
            self._applied.difference_update(ids)

    @contextmanager
    def direct_calls_refused(self) -> Iterator[None]:
        """Makes direct calls of the Hugging Face model an error, because they would bypass a routed edit."""

        def refuse(module: object, args: object) -> None:
            if not self._running_calls:
                raise EditError(
                    "a routed edit is applied, which the Hugging Face model itself knows nothing of; call score() and "
                    "generate() of what applied() yields"
                )

        inner: Any = self.model.base_model
        handles = [module.register_forward_pre_hook(refuse) for module in {self.model, inner}]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _own_call(self) -> Iterator[None]:
        self._running_calls += 1
        try:
            yield
        finally:
            self._running_calls -= 1

    def check_base(self, other: Fingerprint, what: str, name: str, chat_template: bool | None = None) -> str | None:
        """Checks that something was made for this base model.

        Args:
            other: Fingerprint of the base model it was made for.
            what: What it is ("edit", "checkpoint"), for messages.
            name: Name of the base model it was made for.
            chat_template: Whether it was made with the chat template; not compared if None.

        Returns:
            None for the same base, or a message about what differs: precision or quantisation, tokenizer, or prompts
            with or without the chat template.

        Raises:
            BaseModelMismatchError: If it was made for another base model.
        """
        likeness = other.compare(self.fingerprint)
        if likeness is Likeness.DIFFERENT:
            raise BaseModelMismatchError(
                f"this {what} was made for {name} [{other}], but the model given is {self.name} [{self.fingerprint}]; "
                f"load the base model that the {what} was made for"
            )
        differences = []
        if likeness is Likeness.VARIANT:
            differences.append(
                f"the {what} was made for {name} [{other}] and is used with another precision: {self.fingerprint}"
            )
        if chat_template is not None and chat_template != self.encoder.chat_template:
            with_it, without = ("with", "without") if chat_template else ("without", "with")
            differences.append(f"the {what} was made {with_it} the chat template and is used {without} it")
        differences += [
            f"the {what} was made with another {name} than the one it is used with"
            for name in other.text_differences(self.fingerprint, self.encoder.chat_template)
        ]
        if not differences:
            return None
        message = "; ".join(differences)
        warnings.warn(message, stacklevel=2)
        return message

    @cached_property
    def positions(self) -> int | None:
        """Maximum number of tokens in the model's configuration; None if unknown."""
        config: Any = self.model.config.get_text_config()
        named = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
        return next((int(value) for value in named if value), None)

    @cached_property
    def has_position_table(self) -> bool:
        """Whether positions are embedded by a table, which limits the length."""
        tables = [module for module in self.model.modules() if isinstance(module, nn.Embedding)]
        others = [table for table in tables if table is not self.model.get_input_embeddings()]
        return any(0 <= table.num_embeddings - (self.positions or 0) <= _POSITION_OFFSET for table in others)

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
        if not self._warned_about_length:
            self._warned_about_length = True
            warnings.warn(
                f"{message}; what it says beyond them may be of no use (other such texts are not named)", stacklevel=3
            )

    def check_text(self, prompt: str, target: str = "", new_tokens: int = 0) -> None:
        """Raises for a text that cannot be used, before a run would fail on it.

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

    @cached_property
    def takes_position_ids(self) -> bool:
        """Whether the model's forward accepts position_ids."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    @property
    def block_returns(self) -> int:
        """Length of the tuple that a block returns; 0 if it returns a tensor."""
        if self._block_returns is None:
            token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            with torch.no_grad(), self._recording_block_returns(), self._own_call():
                self.model(input_ids=token, use_cache=False)
        return self._block_returns or 0

    @contextmanager
    def _recording_block_returns(self) -> Iterator[None]:
        def note(module: object, args: object, output: Any) -> None:
            self._block_returns = len(output) if isinstance(output, tuple) else 0

        handle = self.layer_map.blocks[0].register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def head_logits(self, batch: TokenBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Runs a forward pass with the language-model head on chosen positions only.

        The head's input is replaced inside the model's own forward, so later processing of the logits (soft-capping,
        scaling) is included. Gradients flow if hooks require them.

        Args:
            batch: R rows of S tokens, on the model's device.
            positions: (R, S) bool, N of them true.

        Returns:
            Logits (N, vocabulary) and head inputs (N, hidden size).
        """
        return self.head_logits_of({**self.inputs(batch), "use_cache": False}, positions)

    def head_logits_of(
        self,
        inputs: dict[str, Any],
        positions: Tensor,
        extra: Tensor | None = None,
        outputs: list[Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Like :meth:`head_logits`, for inputs of the model's own forward.

        Args:
            inputs: Arguments of the model's forward.
            positions: (R, S) bool, N of them true.
            extra: (M, hidden size) head inputs kept from an earlier pass.
            outputs: List that the forward's full output is appended to.
        """
        seen: list[Tensor] = []

        def choose(module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # With a device map, the head may be on another device than the inputs.
            chosen = args[0][positions.to(args[0].device)]
            seen.append(chosen.to(self.device))
            if extra is not None:
                chosen = torch.cat([chosen, extra.to(chosen)])
            return (chosen.unsqueeze(0), *args[1:])

        head: Any = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(choose)
        try:
            with self._own_call():
                output = self.model(**inputs)
        finally:
            handle.remove()
        if outputs is not None:
            outputs.append(output)
        # A view, so that the backward pass needs no second array of the logits' size.
        return output.logits.squeeze(0).to(self.device), seen[0]

    def head_inputs(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        """Returns head inputs (N, hidden size) at chosen positions, without logits; see :meth:`head_logits`."""
        return self.head_inputs_of({**self.inputs(batch), "use_cache": False}, positions)

    def head_inputs_of(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        """Like :meth:`head_inputs`, for inputs of the model's own forward."""
        seen: list[Tensor] = []

        def choose_none(module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(args[0][positions.to(args[0].device)].to(self.device))
            return (args[0][:1, :0], *args[1:])

        head: Any = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(choose_none)
        # Recorded now, because edits applied later may expect other rows.
        noting = self._recording_block_returns() if self._block_returns is None else nullcontext()
        try:
            with noting, self._own_call():
                self.model(**inputs)
        finally:
            handle.remove()
        return seen[0]

    def logits_of(self, inputs: Tensor) -> Tensor:
        """Computes logits (N, vocabulary) of head inputs (N, hidden size), with the model's own post-processing.

        The model's own forward runs on one token with all blocks skipped, and the head reads ``inputs`` instead.
        """
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        nowhere = torch.zeros_like(token, dtype=torch.bool)
        with skipped(self.layer_map.blocks, self.block_returns):
            return self.head_logits_of({"input_ids": token, "use_cache": False}, nowhere, inputs)[0]

    @property
    def logits_at_once(self) -> int:
        """Positions whose logits are computed at once: 16 MB of float32 on a CPU, 512 MB elsewhere.

        A CPU's allocator returns larger arrays to the system and requests them again each time, which takes longer
        than computing them.
        """
        numbers = 2**22 if self.device.type == "cpu" else 2**27
        embeddings: Any = self.model.get_output_embeddings()
        return max(numbers // int(embeddings.weight.shape[0]), 1)

    @property
    def saturation_tokens(self) -> int:
        """Batch size in padded tokens beyond which throughput stops improving: 256 on a CPU, 4,096 elsewhere."""
        return 256 if self.device.type == "cpu" else 4096

    def inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Converts a batch to arguments of the model's own forward."""
        left_padded = not bool(batch.attention_mask[:, 0].all())
        if not left_padded:
            # Causal attention never reads padding to the right, so it needs no mask; with a mask, a padded position
            # beyond a sliding window would have nothing to attend to and become NaN.
            return {"input_ids": batch.input_ids, "attention_mask": torch.ones_like(batch.attention_mask)}
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.takes_position_ids:
            inputs["position_ids"] = batch.position_ids
        return inputs

    def answer_logits(self, batch: TokenBatch) -> Tensor:
        """Returns logits (N, vocabulary) for the batch's target tokens, in the order of ``batch.target_ids``."""
        return self.head_logits(batch, batch.answer_mask)[0]

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        references: Sequence[Tensor | None] | None = None,
        keep_head_input: bool = False,
        passes: ForwardPasses | None = None,
        around: BatchContext | None = None,
        prefix: ReusedPrefix | None = None,
    ) -> list[Score]:
        """Scores targets after their prompts, with teacher forcing.

        Args:
            prompts: The prompts (P).
            targets: One target for each.
            references: Head inputs of an earlier :meth:`score` of the same texts (the unedited model's), or None for
                no divergence.
            keep_head_input: Whether to return the head inputs, for use as references.
            passes: Forward passes to use, such as with cached hidden states; defaults to the full pass.
            around: Context of each padded batch; batches are sorted by length.
            prefix: Keys and values of tokens that all texts begin with; not together with ``passes`` or ``around``.

        Returns:
            P scores, in the order of the prompts.

        Raises:
            ConfigurationError: If a text does not begin with the prefix, or the prefix is given with other passes.
            TokenizationError: If a text does not survive the tokenizer.

        Example:
            >>> [score] = model.score(["The capital of France is"], ["Rome"])
            >>> len(score.predicted_ids) == len(model.encoder.encode("The capital of France is", "Rome").target_ids)
            True
        """
        if prefix is not None and (passes is not None or around is not None):
            raise ConfigurationError("score: a prefix cannot be reused together with other passes or edits of rows")
        encoded = [self.encoder.encode(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        for text in encoded:
            self.check_length(text)
        scores: dict[int, Score] = {}
        lengths = [_tokens_to_run(text, prefix) for text in encoded]
        for chunk in similar_lengths(lengths, self.tokens_per_batch, enough=self.saturation_tokens):
            texts = [encoded[index] for index in chunk]
            batch = self.encoder.collate(texts, "right" if prefix is not None else None).to(self.device)
            kept = [references[index] if references else None for index in chunk]
            with around(self._rows(chunk, texts, batch)) if around else nullcontext():
                scored = self._score_batch(batch, texts, kept, keep_head_input, prefix or passes or self)
            scores.update(zip(chunk, scored, strict=True))
        return [scores[index] for index in range(len(prompts))]

    @staticmethod
    def _rows(chunk: list[int], texts: Sequence[EncodedText], batch: TokenBatch) -> BatchRows:
        prompt_lengths = torch.tensor([text.target[0] for text in texts], device=batch.input_ids.device)
        first_columns = batch.attention_mask.argmax(1)
        return BatchRows(chunk, first_columns + prompt_lengths - 1)

    def _score_batch(
        self,
        batch: TokenBatch,
        texts: list[EncodedText],
        kept: list[Tensor | None],
        keep_head_input: bool,
        passes: ForwardPasses,
    ) -> list[Score]:
        inputs = passes.head_inputs(batch, batch.answer_mask)
        lengths = [len(text.target_ids) for text in texts]
        has_reference = [reference is not None for reference in kept]
        compared = torch.tensor(has_reference).repeat_interleave(torch.tensor(lengths)).nonzero()[:, 0]
        references = [reference.to(inputs) for reference in kept if reference is not None]
        before = torch.cat(references) if references else inputs[:0]
        ratings = rate(self, inputs, batch.target_ids, compared.to(inputs.device), before)
        columns = (inputs, ratings.log_probs, ratings.predicted)
        per_text = zip(*(column.split(lengths) for column in columns), strict=True)
        changes = iter(ratings.divergences.split([n for n, asked in zip(lengths, has_reference, strict=True) if asked]))
        return [
            Score(
                text.target_ids,
                tuple(predicted.tolist()),
                tuple(log_probs.tolist()),
                read.clone() if keep_head_input else None,
                float(next(changes).mean()) if asked else None,
            )
            for text, (read, log_probs, predicted), asked in zip(texts, per_text, has_reference, strict=True)
        ]

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int] = 16,
        around: BatchContext | None = None,
        prefix: ReusedPrefix | None = None,
        **settings: Any,
    ) -> list[str]:
        """Generates continuations of prompts, greedily by default.

        The model's published generation settings (sampling, penalties, beams, suppressed tokens) are not used, except
        for its end-of-text tokens.

        Args:
            prompts: The prompts (P).
            max_new_tokens: Length of the continuation, one for all or one per prompt.
            around: Context of each padded batch.
            prefix: Keys and values of tokens that all prompts begin with; not for beam search, nor with settings of
                the cache.
            settings: Fields of transformers' GenerationConfig, such as ``do_sample`` or ``num_beams``.

        Returns:
            P continuations, without the prompts.

        Raises:
            ConfigurationError: If ``settings`` ask for several continuations of a prompt, or a length is less than one.
            TokenizationError: If a prompt has no tokens.

        Example:
            >>> [text] = model.generate(["The capital of France is"], max_new_tokens=5)
            >>> isinstance(text, str)
            True
        """
        if int(settings.get("num_return_sequences") or 1) != 1:
            raise ConfigurationError(
                "num_return_sequences: one continuation of each prompt is returned; repeat prompts"
            )
        if prefix is not None and around is not None:
            raise ConfigurationError("generate: a prefix cannot be reused together with edits of rows")
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        ranges.at_least(1, "generate", max_new_tokens=min(limits, default=1))
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        if any(not text.ids for text in encoded):
            raise TokenizationError("a prompt has no tokens; give a prompt that is not empty")
        for text, limit in zip(encoded, limits, strict=True):
            self.check_length(text, limit)
        texts: dict[int, str] = {}
        model: Any = self.model
        lengths = [_tokens_to_run(text, prefix) for text in encoded]
        for chunk in similar_lengths(lengths, self.tokens_per_batch, limits):
            ids, mask, cached = self._to_continue([encoded[index] for index in chunk], prefix)
            config = self._generation_config(max(limits[index] for index in chunk), settings)
            last_column = torch.full((len(chunk),), ids.shape[1] - 1, device=self.device)
            with (
                around(BatchRows(chunk, last_column, decoding=True)) if around else nullcontext(),
                self._without_published_generation_config(),
                self._own_call(),
            ):
                output = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=config,
                    **cached,
                    **({"tokenizer": self.tokenizer} if config.stop_strings else {}),
                )
            for index, row in zip(chunk, output[:, ids.shape[1] :].tolist(), strict=True):
                texts[index] = self.encoder.decode(row[: limits[index]])
        return [texts[index] for index in range(len(prompts))]

    def first_generated_logits(self, encoded: Sequence[EncodedText], prefix: ReusedPrefix | None = None) -> Tensor:
        """Returns logits (R, vocabulary) that the first generated token of prompts is chosen from.

        Args:
            encoded: The prompts (R).
            prefix: See :meth:`generate`.
        """
        ids, mask, cached = self._to_continue(encoded, prefix)
        config = self._generation_config(1, {"output_logits": True, "return_dict_in_generate": True})
        model: Any = self.model
        with self._without_published_generation_config(), self._own_call():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **cached)
        logits: Tensor = output.logits[0]
        return logits

    def _to_continue(
        self, encoded: Sequence[EncodedText], prefix: ReusedPrefix | None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Returns ids and attention mask (R, S) of prompts, and the cache to continue them from, if any."""
        if prefix is not None:
            return *prefix.continued(encoded), {"past_key_values": prefix.cache(len(encoded))}
        batch = self.encoder.collate(encoded, padding_side="left").to(self.device)
        return batch.input_ids, batch.attention_mask, {}

    def sample(self, starts: Tensor, length: int) -> Tensor:
        """Samples texts (P, length) int64 from starting ids (P, S), at temperature 1 and without end-of-text."""
        model: Any = self.model
        settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "eos_token_id": None}
        config = self._generation_config(length - starts.shape[1], settings)
        # A step reads all weights for any number of texts, so larger batches take hardly longer.
        parts = starts.to(self.device).split(_SAMPLED_AT_ONCE)
        with self._without_published_generation_config(), self._own_call():
            return torch.cat(
                [model.generate(part, attention_mask=torch.ones_like(part), generation_config=config) for part in parts]
            )

    def _generation_config(self, max_new_tokens: int, settings: dict[str, Any]) -> GenerationConfig:
        values = {
            "do_sample": False,
            "max_new_tokens": max_new_tokens,
            "pad_token_id": self.encoder.pad_id,
            "eos_token_id": getattr(self.model.generation_config, "eos_token_id", None),
        }
        return GenerationConfig(**{**values, **settings})

    @contextmanager
    def _without_published_generation_config(self) -> Iterator[None]:
        """Hides the model's published generation settings.

        transformers fills unset fields of a GenerationConfig from them, so a repetition penalty or beams would change
        greedy decoding.
        """
        published = self.model.generation_config
        self.model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            self.model.generation_config = published

    @contextmanager
    def enable_grad_through(self) -> Iterator[None]:
        """Enables gradients; raises a clear error in inference mode instead of an obscure one from autograd."""
        if torch.is_inference_mode_enabled():
            raise ConfigurationError(
                "this editor takes gradients, which inference mode forbids; create the Trainer with "
                "inference_mode=False"
            )
        with torch.enable_grad():
            yield


def _tokens_to_run(text: EncodedText, prefix: ReusedPrefix | None) -> int:
    """Tokens that a text counts for in a batch; those of a prefix take memory, but hardly any time."""
    return len(text.ids) if prefix is None else len(text.ids) - len(prefix) + len(prefix) // _PREFIX_SHARE
