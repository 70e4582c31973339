"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything reads it: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Before packages with unions of numbers in another order: typing keeps the first of two equal unions, and jsonargparse
# reads "1" as what comes first in it.
import lightning.pytorch  # noqa: F401
import pytest
import torch

from lightning_edit.models import LanguageModel, load_language_model

BENCHMARK_DATA = "LIGHTNING_EDIT_BENCHMARK_DATA"


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """Folder of the published benchmark files: the variable above, data in the checkout, or shared/data beside it."""
    checkout = Path(__file__).parents[1]
    usual = [checkout / "data", checkout.parent / "shared" / "data"]
    folder = Path(os.environ.get(BENCHMARK_DATA) or next(filter(Path.is_dir, usual), usual[0]))
    if not folder.is_dir():
        pytest.skip(f"the published benchmark files are not here; name their folder in {BENCHMARK_DATA}")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """The real SmolLM2-135M-Instruct from its package; shared, since no test may change it."""
    return load_language_model("smollm2-135m-instruct")


@pytest.fixture(autouse=True)
def _no_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the tests may reach for the network or an account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer, saved as a Hugging Face folder."""
    from tests.tiny_models import FAMILIES, build, byte_level_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build(FAMILIES["llama"][0]()).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-attention classifier with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "capital", "of", "is", "france", "rome"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]")
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
