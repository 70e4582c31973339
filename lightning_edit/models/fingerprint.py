"""Fingerprints of language models: a digest of all weights, and samples to compare across precisions."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Settings that may differ between copies of the same model.
_VOLATILE = (
    "_name_or_path",
    "_attn_implementation_autoset",
    "attn_implementation",
    "architectures",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
    "use_cache",
)
_PROBES = ("The Eiffel Tower, Zürich; 3.5% of x?\n", "  don't 12,345\t東京 naïve हिन्दी 🙂", "A", " a")
"""Texts on which tokenizers with the same vocabulary but different rules differ."""
_SAMPLES_PER_TENSOR = 4
_TENSORS_KEPT = 64


class Likeness(StrEnum):
    """How two base models compare."""

    SAME = "same"
    VARIANT = "variant"
    """The same base in another precision or quantisation."""
    DIFFERENT = "different"


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a base model.

    Args:
        model_type: The architecture's name.
        structure: SHA-256 of the configuration, without what differs between copies of one model.
        digest: SHA-256 over the SHA-256 of every tensor, in the precision the model was loaded in.
        dtype: The precision the model was loaded in.
        quantization: The quantisation method, or None.
        samples: Values of a few tensors, for comparing copies in different precision.
        tokenizer: SHA-256 of the tokenizer's vocabulary and of its ids for some texts; None if unknown.
        chat_template: SHA-256 of the tokenizer's chat template; None if there is none or it is unknown.
    """

    model_type: str
    structure: str
    digest: str
    dtype: str
    quantization: str | None
    samples: dict[str, list[float]]
    tokenizer: str | None = None
    chat_template: str | None = None

    def compare(self, other: Fingerprint) -> Likeness:
        """Compares with another model: exactly at equal precision, else up to the coarser rounding."""
        if (self.dtype, self.quantization) == (other.dtype, other.quantization):
            same = (self.structure, self.digest) == (other.structure, other.digest)
            return Likeness.SAME if same else Likeness.DIFFERENT
        if self.structure != other.structure:
            return Likeness.DIFFERENT
        return Likeness.VARIANT if self._close(other) else Likeness.DIFFERENT

    def text_differences(self, other: Fingerprint, chat_template: bool) -> list[str]:
        """Returns what changes the tokens of texts: "tokenizer" and "chat template", if known for both models.

        Args:
            other: The other model.
            chat_template: Whether prompts are rendered with the chat template.
        """
        pairs = {"tokenizer": (self.tokenizer, other.tokenizer)}
        if chat_template:
            pairs["chat template"] = (self.chat_template, other.chat_template)
        return [name for name, (mine, theirs) in pairs.items() if mine and theirs and mine != theirs]

    def _close(self, other: Fingerprint) -> bool:
        shared = sorted(set(self.samples) & set(other.samples))
        if not shared:
            return False
        mine = torch.tensor([value for name in shared for value in self.samples[name]], dtype=torch.float64)
        theirs = torch.tensor([value for name in shared for value in other.samples[name]], dtype=torch.float64)
        coarser = max(_rounding(self.dtype), _rounding(other.dtype))
        # Allows half a unit in the last place for each copy, and float16 underflow.
        return torch.allclose(mine, theirs, rtol=2 * coarser, atol=1e-7)

    def to_dict(self) -> dict[str, Any]:
        """Converts to plain data for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fingerprint:
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    @property
    def short(self) -> str:
        """A short form of twelve characters, for display."""
        return hashlib.sha256((self.structure + self.digest).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.model_type} {self.short} ({self.quantization or self.dtype})"


def _rounding(dtype: str) -> float:
    return float(torch.finfo(getattr(torch, dtype)).eps)


def _samples(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    if flat.numel() <= _SAMPLES_PER_TENSOR:
        return flat
    # Not a power of two, so that samples do not all fall into one column.
    step = max(flat.numel() // _SAMPLES_PER_TENSOR - 1, 1)
    return flat[::step][:_SAMPLES_PER_TENSOR]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Computes the SHA-256 of a tokenizer's vocabulary and of its ids for some texts."""
    probes = [list(tokenizer(text)["input_ids"]) for text in _PROBES]
    content = json.dumps([sorted(tokenizer.get_vocab().items()), *probes])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Fingerprint:
    """Computes the fingerprint of a model from its configuration, all of its tensors and its tokenizer."""
    state = dict(sorted(model.state_dict().items()))
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    quantization = str(getattr(method, "quant_method", "quantised")) if method is not None else None
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    structure = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    kept: dict[str, list[float]] = {}
    stride = max(len(state) // _TENSORS_KEPT, 1)
    for index, (name, tensor) in enumerate(state.items()):
        # Only floating-point tensors are comparable across copies; packed integer weights are not.
        if index % stride == 0 and tensor.is_floating_point() and not tensor.is_meta:
            kept[name] = _samples(tensor).cpu().double().tolist()
    dtype = str(model.dtype).removeprefix("torch.")
    template = getattr(tokenizer, "chat_template", None)
    return Fingerprint(
        str(model.config.model_type),
        structure.hexdigest(),
        weights_digest(model),
        dtype,
        quantization,
        kept,
        tokenizer_digest(tokenizer),
        hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else None,
    )


def weights_digest(model: PreTrainedModel) -> str:
    """Computes the SHA-256 of names, shapes, dtypes and contents of a model's tensors; shared memory is read once."""
    state = dict(sorted(model.state_dict().items()))
    unique = {(tensor.data_ptr(), tensor.shape, tensor.dtype): tensor for tensor in state.values()}
    # Hashing releases the GIL, and large tensors dominate.
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(unique, pool.map(_tensor_digest, unique.values()), strict=True))
    total = hashlib.sha256()
    for name, tensor in state.items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(digests[tensor.data_ptr(), tensor.shape, tensor.dtype])
    return total.hexdigest()


def _tensor_digest(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        # Offloaded to disk: only name, shape and dtype count.
        return b""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()
