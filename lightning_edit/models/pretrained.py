"""Loads a model and its tokenizer from the Hub, a folder or a GGUF file; rejects incomplete files."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.hub import could_be_hub_id

_POINTER = b"version https://git-lfs"
_UNUSABLE = (
    ValueError, KeyError, ImportError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error, SafetensorError,
)  # fmt: skip
"""Errors of transformers for truncated weights, unknown architectures, missing packages and encoder-decoders."""
_NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"


def load_pretrained(
    path: str, revision: str | None, options: dict[str, Any], instead: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model and its tokenizer from a folder, a GGUF file or the Hub.

    Args:
        path: Folder, GGUF file or Hub id.
        revision: Branch, tag or commit on the Hub.
        options: Passed to transformers' ``from_pretrained``.
        instead: What the error message suggests to pass instead.

    Raises:
        SourceNotFoundError: If there is no such model.
        ConfigurationError: If it is incomplete, or cannot be loaded.
    """
    file = Path(path).expanduser()
    source: dict[str, Any] = {"revision": revision} if revision else {}
    where = str(file) if file.exists() else path
    if file.suffix == ".gguf":
        if not file.is_file():
            raise SourceNotFoundError(f"{path}: no such GGUF file; pass the path of an existing one")
        where, source = str(file.parent), {"gguf_file": file.name}
    _refuse_pointers(file)
    if not file.exists() and not could_be_hub_id(path):
        raise SourceNotFoundError(f"{path}: no such folder or file; pass {instead}")
    try:
        if not file.exists():
            # If the repository is unreachable, transformers may report a missing tokenizer or model type instead.
            hf_hub_download(path, "config.json", revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(where, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, **source, **options, output_loading_info=True)
    except (OSError, EntryNotFoundError) as error:
        raise SourceNotFoundError(
            f"the model {path!r} is neither a local folder or GGUF file nor reachable on the Hub "
            f"({_first_line(error)}); pass {instead}"
        ) from error
    except _UNUSABLE as error:
        raise ConfigurationError(f"the model {path!r} cannot be loaded: {_reason(error)}") from error
    model, information = loaded
    _refuse_incomplete(path, information)
    _refuse_offloaded(path, model)
    return model, tokenizer


def _refuse_incomplete(path: str, loading: Mapping[str, Any]) -> None:
    """Raises if weights were missing from the files, which transformers would initialise at random.

    Raises:
        ConfigurationError: If weights are missing.
    """
    missing, mismatched = sorted(loading.get("missing_keys") or ()), loading.get("mismatched_keys") or ()
    if missing or mismatched:
        names = [*missing, *(str(entry[0] if isinstance(entry, tuple) else entry) for entry in mismatched)]
        unused = sorted(loading.get("unexpected_keys") or ())
        hint = f"; the files hold names that the model does not have, such as {unused[0]}" if unused else ""
        raise ConfigurationError(
            f"the model {path!r} is incomplete: {len(names)} weights are missing or of another shape, such as "
            f"{names[0]}{hint}. They would be random; get the complete files"
        )


def _refuse_pointers(folder: Path) -> None:
    """Raises if a file, or a file in a folder, is a Git LFS pointer.

    Raises:
        ConfigurationError: If there is one.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*"))
    for file in files:
        if not file.is_file():
            continue
        with file.open("rb") as content:
            if content.read(len(_POINTER)) == _POINTER:
                raise ConfigurationError(
                    f"{file} is a Git LFS pointer, not the file itself; run git lfs pull in its folder"
                )


def _refuse_offloaded(path: str, model: PreTrainedModel) -> None:
    """Raises if device_map offloaded part of a model to disk, out of reach of edits and fingerprints.

    Raises:
        ConfigurationError: If it is offloaded.
    """
    devices: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    offloaded = [name for name, device in devices.items() if str(device) == "disk"]
    if offloaded:
        raise ConfigurationError(
            f"the model {path!r} does not fit: {len(offloaded)} of its modules, such as {offloaded[0]}, would lie on "
            "the disk, where they cannot be edited; use a device_map without disk, a smaller dtype, or quantization"
        )


def _reason(error: BaseException) -> str:
    text = _first_line(error)
    if text.startswith(_NO_TOKENIZER):
        return "it has no tokenizer that can be read; put its tokenizer.json, or tokenizer.model, beside the weights"
    return text


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
