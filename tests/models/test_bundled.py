"""Bundled models: converted once, and again when the conversion was damaged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lightning_edit.models import bundled
from lightning_edit.models.bundled import BUNDLED, load_bundled
from lightning_edit.models.language_model import LanguageModel
from lightning_edit.models.loading import load_language_model
from lightning_edit.models.pretrained import load_pretrained


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> list[str]:
    """A bundled model "tiny", whose conversions are recorded."""
    calls: list[str] = []

    def read_gguf(path, revision, options, instead):
        calls.append(path)
        return load_pretrained(str(tiny_folder), revision, options, instead)

    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path))
    monkeypatch.setitem(BUNDLED, "tiny", ("pip", "tiny.gguf"))
    monkeypatch.setattr(bundled, "load_pretrained", read_gguf)
    return calls


def _load(dtype: str) -> LanguageModel:
    return load_bundled("tiny", lambda folder: load_language_model(str(folder), dtype=dtype))


def _damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_damaged_conversions_are_repaired(conversions, tmp_path, dtype):
    original = _load(dtype).fingerprint
    assert _load(dtype).fingerprint == original
    assert len(conversions) == 1
    (folder,) = (tmp_path / "models").glob("tiny-*.*/")
    names = sorted(file.name for file in folder.iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "lightning_edit.json"} <= set(names)
    rng = random.Random(0)
    for attempt in range(40):
        name = "model.safetensors" if attempt % 2 else rng.choice(names)
        _damage(folder / name, rng)
        assert _load(dtype).fingerprint == original, (attempt, name)
    # Damage to the header that leaves every tensor as it was needs no repair.
    assert len(conversions) > 30


def test_a_missing_file_is_converted_again(conversions, tmp_path):
    original = _load("float32").fingerprint
    (folder,) = (tmp_path / "models").glob("tiny-*.*/")
    (folder / "model.safetensors").unlink()
    assert _load("float32").fingerprint == original
    assert len(conversions) == 2
