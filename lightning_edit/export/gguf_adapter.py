"""Exports LoRA adapters as GGUF files, which llama.cpp loads with a GGUF model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.export.adapter import Adapter
from lightning_edit.export.gguf_model import Arrangement, by_halves
from lightning_edit.files import replace_file
from lightning_edit.models.language_model import LanguageModel

_ARCHITECTURES = {"gpt_neox": "gptneox", "qwen2_moe": "qwen2moe", "phi": "phi2", "phi3": "phi3", "mistral": "llama"}
"""Model types with another name in GGUF."""
_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
"""Projections whose rows llama.cpp reorders per head for Llama, with the setting that counts their heads."""
_IN_ORDER = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3")
"""Architectures whose query and key rows llama.cpp does not reorder."""
_QUERIES_AND_KEYS = (*_HEADS, "query_key_value")


def save_gguf_adapter(adapter: Adapter, model: LanguageModel, path: str | Path) -> Path:
    """Writes an adapter as a GGUF file; llama.cpp scales it by alpha / rank, which is 1.

    Args:
        adapter: The adapter.
        model: The base model, whose type and depth determine the tensor names.
        path: The file to write; it is written atomically.

    Raises:
        ConfigurationError: If the package gguf is not installed.
        EditError: If llama.cpp has no name for the model or for an edited module, or stores it in another order.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError("GGUF files need the package gguf: pip install gguf")
    import gguf

    if Path(path).is_dir():
        raise EditError(f"{path} is a folder; name a file that ends in .gguf")
    model_type = str(model.model.config.model_type)
    architecture = _ARCHITECTURES.get(model_type, model_type)
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise EditError(f"llama.cpp has no architecture {architecture!r}; merge the edit instead")
    names = gguf.get_tensor_name_map(known[architecture], len(model.layer_map))
    with replace_file(path, sum(tensor.nbytes for tensor in adapter.tensors.values())) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.rank))
        for module, (a, b) in adapter.factors.items():
            name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
            arranged = _arrangement(module, architecture, model)
            if name is None or arranged is None:
                raise EditError(f"{module} has no place in a GGUF adapter of {architecture}; merge the edit instead")
            writer.add_tensor(f"{name}.lora_a", a.T.contiguous().cpu().numpy())
            writer.add_tensor(f"{name}.lora_b", arranged(b.T.contiguous().cpu().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def _arrangement(module: str, architecture: str, model: LanguageModel) -> Arrangement | None:
    """Returns the row order of a projection's (fan_out, rank) factors in the file; None if unknown."""
    projection = module.rpartition(".")[2]
    if projection not in _QUERIES_AND_KEYS or architecture in _IN_ORDER:
        return lambda matrix: matrix
    if architecture != "llama" or projection not in _HEADS:
        return None
    return by_halves(int(getattr(model.model.config.get_text_config(), _HEADS[projection])))
