"""Exports edits to the formats of other programs."""

from lightning_edit.export.adapter import RANKS, Adapter, adapter_of, save_adapter
from lightning_edit.export.gguf_adapter import save_gguf_adapter
from lightning_edit.export.gguf_model import save_merged_gguf

__all__ = ["RANKS", "Adapter", "adapter_of", "save_adapter", "save_gguf_adapter", "save_merged_gguf"]
