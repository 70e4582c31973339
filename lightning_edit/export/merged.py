"""Merged models: edits written into the weights, saved as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from lightning_edit.edits.sequence import EditSequence
from lightning_edit.export.adapter import EDITS, origins, write_text
from lightning_edit.export.card import model_card
from lightning_edit.files import replace_folder
from lightning_edit.models.language_model import LanguageModel


def save_merged(sequence: EditSequence, model: LanguageModel, folder: Path) -> None:
    """Writes edits into a model's weights and saves it with its tokenizer, a card and the edits' origins.

    Args:
        sequence: The edits.
        model: The base model, which is changed.
        folder: Where to save it; the folder is written atomically.

    Raises:
        EditError: If an edit cannot be written into weights.
    """
    sequence.merge(model)
    with replace_folder(folder, sum(parameter.nbytes for parameter in model.model.parameters())) as temporary:
        model.model.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        write_text(temporary / EDITS, origins(sequence.edits))
        usage = f'`transformers.AutoModelForCausalLM.from_pretrained("{folder.name}")`'
        write_text(temporary / "README.md", model_card("Edited language model", sequence.edits, usage))
