"""Loads language models from the Hub, a folder, a GGUF file, or by bundled name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_edit.errors import ConfigurationError
from lightning_edit.models.bundled import BUNDLED, load_bundled
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.pretrained import load_pretrained


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which language model to load, and how.

    Args:
        name_or_path: Hub id, local folder, GGUF file, or the bundled name "smollm2-135m-instruct".
        revision: Branch, tag or commit on the Hub.
        dtype: "float32", "bfloat16" or "float16"; "auto" uses the published one.
        device: Device of the model; None leaves the choice to the Trainer (or the CPU).
        device_map: Passed to transformers ("auto" spreads a large model over several devices).
        quantization: Keyword arguments of transformers' BitsAndBytesConfig, such as {load_in_4bit: true}.
        attn_implementation: Passed to transformers, such as "sdpa" or "eager".
        site: Name of the edit site with "{}" for the layer, for models with an ambiguous structure.
        chat_template: Render prompts with the tokenizer's chat template.
        tokens_per_batch: Padded tokens per forward pass of scoring and generating.
        separator: Text between prompt and target; "" for scripts written without spaces.
    """

    name_or_path: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    device_map: str | dict[str, Any] | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    attn_implementation: str | None = None
    site: str | None = None
    chat_template: bool = False
    tokens_per_batch: int = 2048
    separator: str = " "


def load_language_model(
    name_or_path: str = "smollm2-135m-instruct",
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization: dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    site: str | None = None,
    chat_template: bool = False,
    tokens_per_batch: int = 2048,
    separator: str = " ",
) -> LanguageModel:
    """Loads a language model; the arguments are those of :class:`LanguageModelSettings`.

    Raises:
        SourceNotFoundError: If the model is neither local nor reachable on the Hub; the message says what to pass.
        ConfigurationError: If a setting is unknown, or a package that it needs is not installed.
        LayerMapError: If the model's blocks cannot be found.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigurationError(f"dtype: expected float32, bfloat16, float16 or auto, found {dtype!r}")
    options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if device_map is not None:
        options["device_map"] = device_map
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization:
        options["quantization_config"] = _quantization_config(quantization)

    def load(path: str) -> LanguageModel:
        instead = f"a local folder, a GGUF file, or one of {sorted(BUNDLED)}"
        model, tokenizer = load_pretrained(path, revision, options, instead)
        return LanguageModel(model, tokenizer, name_or_path, revision, site, chat_template, tokens_per_batch, separator)

    if name_or_path in BUNDLED:
        language_model = load_bundled(name_or_path, lambda folder: load(str(folder)))
    else:
        language_model = load(name_or_path)
    if device is not None:
        language_model.place(device)
    return language_model


def _quantization_config(arguments: dict[str, Any]) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError("quantization: needs the package bitsandbytes (pip install bitsandbytes)")
    return BitsAndBytesConfig(**arguments)
