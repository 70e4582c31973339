import json
import shutil
import threading
from collections import namedtuple

import pytest
import torch

from lightning_edit.errors import BaseModelMismatchError, ConfigurationError
from lightning_edit.models import LanguageModel
from lightning_edit.models.trunk import Trunk
from tests.tiny_models import language_model

TEXTS = [(f"The capital of country {number} is", f"Rome {number}") for number in range(40)]


@pytest.fixture(scope="module")
def model():
    return language_model("llama")


def encoded(model, texts):
    return [model.encoder.encode(*text) for text in texts]


def filled(model, folder, layer=1, texts=TEXTS, **settings):
    trunk = Trunk(model, layer, **settings)
    trunk.fill(encoded(model, texts), encoded(model, texts[:5]), folder)
    return trunk


def only_folder(folder):
    [subfolder] = [path for path in folder.iterdir() if path.is_dir()]
    return subfolder


@torch.no_grad()
def test_states_on_disk_are_those_in_memory(model, tmp_path):
    disk, memory = filled(model, tmp_path), filled(model, None)
    batch = model.encoder.collate(encoded(model, TEXTS[3:20]))
    compared = model.encoder.collate(encoded(model, TEXTS[:5]))
    assert torch.equal(disk.answer_logits(batch), memory.answer_logits(batch))
    assert torch.equal(disk.references(compared), memory.references(compared))
    assert disk.store.bytes == memory.store.bytes > 0


def test_a_second_run_computes_nothing(model, tmp_path, monkeypatch):
    filled(model, tmp_path)
    monkeypatch.setattr(Trunk, "_compute_group", None)
    assert filled(model, tmp_path).store.bytes > 0


def test_the_folder_records_what_it_belongs_to(model, tmp_path):
    filled(model, tmp_path)
    identity = json.loads((only_folder(tmp_path) / "trunk.json").read_text())["identity"]
    assert identity["model"] == "tiny-llama"
    assert identity["fingerprint"] == f"{model.fingerprint.structure}-{model.fingerprint.digest}"
    assert (identity["layer"], identity["dtype"]) == (1, "float32")


@pytest.mark.parametrize("change", ["layer", "texts", "dtype", "weights", "configuration"])
def test_other_settings_get_another_folder(change, tmp_path):
    model = language_model("llama")
    filled(model, tmp_path)
    if change == "weights":
        model = language_model("llama")
        model.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    if change == "configuration":
        # The same weights in another model, with other rotary embeddings.
        model = LanguageModel(model.model, model.tokenizer, model.name)
        model.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    settings = {"layer": {"layer": 2}, "texts": {"texts": TEXTS[:-1]}, "dtype": {"dtype": torch.bfloat16}}
    filled(model, tmp_path, **settings.get(change, {}))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_a_cache_of_other_settings_is_refused(model, tmp_path):
    filled(model, tmp_path)
    first = only_folder(tmp_path)
    filled(model, tmp_path, layer=2)
    [second] = [path for path in tmp_path.iterdir() if path.is_dir() and path != first]
    shutil.rmtree(first)
    second.rename(first)
    with pytest.raises(BaseModelMismatchError, match=r"holds hidden states of tiny-llama \(layer 2"):
        filled(model, tmp_path)


def test_a_folder_of_something_else_is_left_alone(model, tmp_path):
    filled(model, tmp_path)
    folder = only_folder(tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match="holds no cache"):
        filled(model, tmp_path)
    assert (folder / "thesis.txt").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest", "missing"])
@torch.no_grad()
def test_a_broken_cache_is_rebuilt(model, tmp_path, damage):
    expected = filled(model, tmp_path)
    states = only_folder(tmp_path) / "states"
    content = states.read_bytes()
    if damage == "truncated":
        states.write_bytes(content[:-100])
    elif damage == "flipped":
        states.write_bytes(content[:50] + bytes([content[50] ^ 255]) + content[51:])
    elif damage == "manifest":
        (only_folder(tmp_path) / "trunk.json").write_text('{"format": 1')
    else:
        states.unlink()
    again = filled(model, tmp_path)
    assert states.read_bytes() == content
    batch = model.encoder.collate(encoded(model, TEXTS[:3]))
    assert torch.equal(again.answer_logits(batch), expected.answer_logits(batch))


def test_a_full_disk_is_reported_before_any_computation(model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    monkeypatch.setattr(Trunk, "_compute_group", None)
    with pytest.raises(ConfigurationError, match=r"need 0\.00 GB, and .* free; lower trunk\.gigabytes"):
        filled(model, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_nothing_half_written_is_left_when_computing_fails(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Trunk, "_compute_group", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        filled(model, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_concurrent_runs_build_the_cache_once(model, tmp_path, monkeypatch):
    computed = []
    compute = Trunk._compute_group
    monkeypatch.setattr(Trunk, "_compute_group", lambda self, group: computed.append(1) or compute(self, group))
    models = [language_model("llama"), language_model("llama")]
    threads = [threading.Thread(target=filled, args=(instance, tmp_path)) for instance in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 3  # 35 texts and 5 compared ones, 32 in a pass


def test_the_size_is_announced_and_limited(model, tmp_path, caplog):
    caplog.set_level("INFO", logger="lightning_edit")
    whole = filled(model, tmp_path).store.bytes
    trunk = filled(model, tmp_path, limit=whole - 1)
    assert 0 < trunk.store.bytes < whole
    assert any("40 of 40 texts" in message for message in caplog.messages)
    assert any("35 of 40 texts" in message for message in caplog.messages)


@torch.no_grad()
def test_bfloat16_halves_the_size_and_rounds(model, tmp_path):
    exact, rounded = filled(model, tmp_path), filled(model, tmp_path, dtype=torch.bfloat16)
    assert rounded.store.bytes == exact.store.bytes // 2
    batch = model.encoder.collate(encoded(model, TEXTS[:8]))
    difference = (rounded.answer_logits(batch) - exact.answer_logits(batch)).norm() / exact.answer_logits(batch).norm()
    assert 0 < float(difference) < 2e-2
