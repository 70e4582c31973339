"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything reads it: no test may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from lightning_edit.models import LanguageModel, load_language_model

BENCHMARK_DATA = "LIGHTNING_EDIT_BENCHMARK_DATA"


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """Folder of the published benchmark files: the variable above, or shared/data beside the checkout."""
    folder = Path(os.environ.get(BENCHMARK_DATA, Path(__file__).parents[2] / "shared" / "data"))
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
