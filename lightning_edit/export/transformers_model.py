"""Edited models as transformers models, whose forward and generate support routed edits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lightning_edit.edits.base import Edit, Scorer
from lightning_edit.edits.sequence import EditSequence
from lightning_edit.errors import EditError
from lightning_edit.models.language_model import LanguageModel

_IGNORED = -100
"""Label of positions without a loss, as in transformers."""
_DEFAULT_NEW_TOKENS = 20
"""Default length of a generation, as in transformers."""
_SETTINGS = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_beams", "stop_strings")
"""Generation settings that routed edits support."""
_TOKEN_SETTINGS = ("transformers_version", "bos_token_id", "eos_token_id", "pad_token_id")
"""Entries of a GenerationConfig that the base model's tokenizer decides for routed edits."""
_NEXT = " the"
"""A text that tokenizers do not merge with the preceding text."""


class EditedCausalLM(PreTrainedModel):
    """A base model with an edit, as a transformers model for inference.

    Weight edits are applied only during each call, so the base model is not changed. Routed edits decide once per row,
    from its prompt. They work on text: prompts are decoded and tokenised again with the base's tokenizer.

    Args:
        edit: An edit, or a sequence of edits.
        model: The base model.

    Raises:
        BaseModelMismatchError: If the edit was made for another base model.
        EditError: If the model renders prompts with the chat template, which rows already contain.
    """

    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, edit: Edit | EditSequence, model: LanguageModel) -> None:
        if model.encoder.chat_template:
            raise EditError(
                "as_hf: the model renders prompts with its chat template, but what it is given here is rendered "
                "already; load it without, or use lightning-edit serve, which renders chats itself"
            )
        super().__init__(model.model.config)
        # The tuple keeps the base model's parameters from being registered here.
        self._parts = (edit, model)
        self.generation_config = model.model.generation_config
        with edit.applied(model):
            pass

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self._parts[1].device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the hidden states."""
        return self._parts[1].dtype

    # transformers asks the class, but this answer is the same for every instance.
    def can_generate(self) -> bool:  # type: ignore[override]
        """Whether transformers may call :meth:`generate`."""
        return True

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        **arguments: Any,
    ) -> CausalLMOutput:
        """Computes logits of the edited model.

        Args:
            input_ids: (R, S) int64.
            attention_mask: (R, S) 0 for padding.
            labels: (R, S) int64, -100 for positions without loss; adds the mean negative log-likelihood.
            prompt_lengths: (R) prompt tokens of each row, without padding, for routed edits to decide on; default: all.
                Its logits start at the prompt's last token; earlier ones are the base's.
            arguments: For weight edits, further arguments of the base model's own forward.
        """
        edit, model = self._parts
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with edit.applied(model) as scorer:
            if scorer is model:
                output = model.model(input_ids=input_ids, attention_mask=attention_mask, **arguments)
                logits: Tensor = output.logits
        if scorer is not model:
            logits = self._routed_logits(input_ids, mask, prompt_lengths)
        # transformers annotates both as FloatTensor, which no function of torch returns.
        return CausalLMOutput(loss=_loss(logits, labels), logits=logits)  # type: ignore[arg-type]

    def _routed_logits(self, input_ids: Tensor, mask: Tensor, prompt_lengths: Tensor | None) -> Tensor:
        edit, model = self._parts
        logits: Tensor = model.model(input_ids=input_ids, attention_mask=mask).logits.clone()
        lengths = mask.sum(1) if prompt_lengths is None else prompt_lengths
        with edit.applied(model) as scorer:
            for row in range(len(input_ids)):
                places = mask[row].nonzero()[:, 0]
                ids, prompt = input_ids[row, places].tolist(), int(lengths[row])
                answered = _answer_logits(scorer, model, ids, prompt)
                logits[row, places[prompt - 1 : prompt - 1 + len(answered)]] = answered.to(logits)
        return logits

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **settings: Any,
    ) -> Tensor:
        """Generates continuations of token ids (R, S), greedily unless ``do_sample`` or a configuration is given.

        Returns:
            (R, S + T) int64: the rows and their continuations, padded at the end.

        Raises:
            EditError: If a routed edit does not support one of the settings.
        """
        edit, model = self._parts
        rows = settings.pop("inputs", input_ids)
        if rows is None:
            raise EditError("generate: give input_ids")
        with edit.applied(model) as scorer:
            if scorer is model:
                if generation_config is None:
                    settings = {"do_sample": False, **settings}
                # transformers leaves generate untyped on PreTrainedModel.
                output: Tensor = model.model.generate(  # type: ignore[operator]
                    input_ids=rows, attention_mask=attention_mask, generation_config=generation_config, **settings
                )
                return output
            chosen = {**(generation_config.to_diff_dict() if generation_config is not None else {}), **settings}
            wanted = {
                name: value for name, value in chosen.items() if value is not None and name not in _TOKEN_SETTINGS
            }
            if unknown := sorted(set(wanted) - set(_SETTINGS)):
                raise EditError(f"generate: a routed edit has no setting {unknown[0]}; it has {', '.join(_SETTINGS)}")
            length = int(wanted.pop("max_new_tokens", None) or _DEFAULT_NEW_TOKENS)
            mask = torch.ones_like(rows) if attention_mask is None else attention_mask
            prompts = [model.encoder.decode(ids[kept.bool()].tolist()) for ids, kept in zip(rows, mask, strict=True)]
            texts = scorer.generate(prompts, length, **wanted)
        continued = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, continued), default=0)
        padded = [[*ids, *([model.encoder.pad_id] * (longest - len(ids)))] for ids in continued]
        return torch.cat([rows, torch.tensor(padded, dtype=rows.dtype, device=rows.device).view(len(rows), longest)], 1)


def _answer_logits(scorer: Scorer, model: LanguageModel, ids: list[int], prompt_length: int) -> Tensor:
    """Computes logits (T + 1, vocabulary) after a prompt and after each of the T tokens that follow it.

    Raises:
        EditError: If tokenising their text does not give the same tokens, or another model answers.
    """
    prompt, rest = model.encoder.decode(ids[:prompt_length]), ids[prompt_length:]
    # One extra token, so that there is a position after the last one.
    text = model.encoder.decode(rest) + _NEXT
    [score] = scorer.score([prompt], [text], None, True)
    if score.head_input is None:
        raise EditError("as_hf: a separate model answers this prompt, so forward() has no logits; call generate()")
    if tuple(rest) != score.target_ids[: len(rest)]:
        raise EditError(f"as_hf: the tokens after the prompt {prompt!r} change when their text is tokenised again")
    return model.logits_of(score.head_input[: len(rest) + 1])


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED)
