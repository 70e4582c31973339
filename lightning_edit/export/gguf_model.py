"""Exports merged models as GGUF files, with metadata and tokenizer of the base model's GGUF file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_edit.edits.sequence import EditSequence
from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.layer_map import EditSite

Precision = Literal["f32", "f16", "q8_0"]
_FILE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "q8_0": 7}
"""llama.cpp's file types by precision (general.file_type)."""
_FILE_TYPE = "general.file_type"
_BLOCK = 32
"""Values that share a scale in q8_0."""
_ROUNDING = 1e-5

Matrix = NDArray[np.float32]
Arrangement = Callable[[Matrix], Matrix]


def save_merged_gguf(
    sequence: EditSequence, model: LanguageModel, base: str | Path, path: str | Path, precision: Precision = "f16"
) -> Path:
    """Writes the edited model as a GGUF file that llama.cpp loads.

    Tensors of the base's file are dequantised to float32 and the edits are added. Matrices are written in
    ``precision``, vectors in float32.

    Args:
        sequence: The edits.
        model: The base model, which is not changed.
        base: GGUF file of the same base model.
        path: The file to write; it is written atomically.
        precision: "f32", "f16" or "q8_0".

    Raises:
        ConfigurationError: If the package gguf is not installed, or there is no such precision.
        EditError: If an edit does not change weights, or the file is of another model.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError("GGUF files need the package gguf: pip install gguf")
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision: expected one of {get_args(Precision)}, found {precision!r}")
    if not str(path).endswith(".gguf") or Path(path).is_dir():
        raise ConfigurationError(f"output: {path} is not a name that ends in .gguf, or a folder")
    if not Path(base).is_file():
        raise ConfigurationError(f"gguf: {base}: no such file; give the base model's GGUF file")
    import gguf

    for edit in sequence.edits:
        edit.check_mergeable("written into a GGUF file")
        edit.check(model)
    reader = gguf.GGUFReader(base)
    architecture = str(reader.fields["general.architecture"].contents())
    changes = _changes(sequence, model, reader, architecture)
    with replace_file(path, 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        _copy_metadata(reader, writer, precision)
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            _add_tensor(writer, tensor.name, values + changes.get(tensor.name, np.float32(0.0)), precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def _copy_metadata(reader: Any, writer: Any, precision: str) -> None:
    for name, field in reader.fields.items():
        # The writer sets these itself.
        if name.startswith("GGUF.") or name in ("general.architecture", _FILE_TYPE):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(_FILE_TYPES[precision])


def _add_tensor(writer: Any, name: str, values: Matrix, precision: str) -> None:
    import gguf

    if values.ndim < 2 or precision == "f32":
        writer.add_tensor(name, values)
    elif precision == "f16" or values.shape[-1] % _BLOCK:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _changes(sequence: EditSequence, model: LanguageModel, reader: Any, architecture: str) -> dict[str, Matrix]:
    """Computes the change of each tensor, by its name in the file.

    Raises:
        EditError: If a change has no place in the file.
    """
    import gguf

    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], len(model.layer_map))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    changes = {}
    for site_name, delta in sequence.weight_deltas().items():
        name = names.get_name(f"{site_name}.weight", try_suffixes=(".weight",))
        if name is None or name not in tensors:
            raise EditError(f"{site_name} has no place in a GGUF file of {architecture}; merge to a folder instead")
        site = model.layer_map.named_site(site_name)
        there = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        arranged = _arrangement(site, there, model, tensors[name])
        changes[name] = arranged(_as_matrix(delta.dense().T))
    return changes


def _as_matrix(weight: Tensor) -> Matrix:
    matrix: Matrix = weight.detach().to("cpu", torch.float32).contiguous().numpy()
    return matrix


def _arrangement(site: EditSite, there: Matrix, model: LanguageModel, tensor: Any) -> Arrangement:
    """Finds the row order of (fan_out, fan_in) weights in the file; llama.cpp reorders some queries and keys.

    Raises:
        EditError: If the file's weight matches the model's in no order.
    """
    mine = _as_matrix(site.oriented(site.weight).T)
    config: Any = model.model.config.get_text_config()
    heads = (getattr(config, "num_attention_heads", 0), getattr(config, "num_key_value_heads", 0))
    candidates: list[Arrangement] = [lambda matrix: matrix]
    candidates += [by_halves(count) for count in heads if count and mine.shape[0] % (2 * count) == 0]
    scale = float(np.abs(mine).max())
    for arranged in candidates:
        if arranged(mine).shape == there.shape and np.allclose(arranged(mine), there, atol=_ROUNDING * scale, rtol=0):
            return arranged
    raise EditError(
        f"{tensor.name} of the GGUF file is not {site.name} of the base model; give the GGUF file that the base model "
        "was loaded from"
    )


def by_halves(heads: int) -> Arrangement:
    """Interleaves the rows of each head's two halves, as llama.cpp's rotary embeddings expect."""

    def arranged(matrix: Matrix) -> Matrix:
        rows, columns = matrix.shape
        halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape((rows, columns))

    return arranged
