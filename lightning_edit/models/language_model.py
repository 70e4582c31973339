"""A frozen Hugging Face language model that scores and generates."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_edit import ranges
from lightning_edit.errors import BaseModelMismatchError, ConfigurationError, EditError, TokenizationError
from lightning_edit.models.fast_paths import FastPathRecord
from lightning_edit.models.fingerprint import Fingerprint, Likeness, fingerprint
from lightning_edit.models.generation import continue_texts, sample_texts
from lightning_edit.models.layer_map import LayerMap
from lightning_edit.models.passes import BatchContext, ForwardPasses, ReusedPrefix
from lightning_edit.models.products import use_wide_products
from lightning_edit.models.scoring import Score, score_texts
from lightning_edit.models.skipping import skipped
from lightning_edit.models.text_limits import TextLimits
from lightning_edit.tokenization import PromptEncoder, TokenBatch


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
        self.limits = TextLimits(model, self.encoder, self.name)
        self.tokens_per_batch = tokens_per_batch
        self._block_returns: int | None = None
        self._applied: list[Collection[str]] = []
        self._running_calls = 0
        self.fast_paths = FastPathRecord()
        """Which fast passes were compared with the full forward pass."""

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
        self.fast_paths.clear()

    @contextmanager
    def marked_as_applied(self, ids: Collection[str]) -> Iterator[None]:
        """Marks edits as applied to this model within the context.

        Args:
            ids: Ids of the edits.

        Raises:
            EditError: If one of them is already applied; its change would count twice.
        """
        for others in self._applied:
            fewer, more = sorted((ids, others), key=len)
            if twice := next((id for id in fewer if id in more), None):
                raise EditError(f"the edit {twice} is applied to this model already; leave that context first")
        self._applied.append(ids)
        try:
            yield
        finally:
            self._applied.remove(ids)

    @property
    def applied_around(self) -> tuple[str, ...]:
        """Ids of the edits that were applied before the latest ones, which are applied on top of them."""
        return tuple(id for ids in self._applied[:-1] for id in ids)

    @contextmanager
    def direct_calls_refused(self) -> Iterator[None]:
        """Makes direct calls of the Hugging Face model an error, because they would bypass a routed edit."""

        def refuse(module: object, args: object) -> None:
            if not self._running_calls:
                raise EditError(
                    "a routed edit is applied, which direct calls of the Hugging Face model bypass; call score() or "
                    "generate() of the scorer that applied() yields"
                )

        inner: Any = self.model.base_model
        handles = [module.register_forward_pre_hook(refuse) for module in {self.model, inner}]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def permitted_call(self) -> Iterator[None]:
        """Permits calls of the Hugging Face model within :meth:`direct_calls_refused`, for methods of this class."""
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
    def takes_position_ids(self) -> bool:
        """Whether the model's forward accepts position_ids."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    @property
    def block_returns(self) -> int:
        """Length of the tuple that a block returns; 0 if it returns a tensor."""
        if self._block_returns is None:
            token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            with torch.no_grad(), self._recording_block_returns(), self.permitted_call():
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
            with self.permitted_call():
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
            with noting, self.permitted_call():
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
            self.limits.check_length(text)
        return score_texts(self, encoded, references, keep_head_input, passes, around, prefix)

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
            self.limits.check_length(text, limit)
        return continue_texts(self, encoded, limits, settings, around, prefix)

    def sample(self, starts: Tensor, length: int) -> Tensor:
        """Samples texts (P, length) int64 from starting ids (P, S), at temperature 1 and without end-of-text."""
        return sample_texts(self, starts, length)

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
