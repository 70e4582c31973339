"""Error messages for models that cannot be loaded."""

from __future__ import annotations

import shutil

import pytest
import transformers

from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.hub import could_be_hub_id
from lightning_edit.models import load_language_model, pretrained

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"])
def test_pointers_of_git_lfs_are_named(folder, name):
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(ConfigurationError, match=rf"{name} is a Git LFS pointer"):
        load_language_model(str(folder))


def test_a_pointer_in_the_place_of_a_gguf_file_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(POINTER)
    with pytest.raises(ConfigurationError, match=r"model\.gguf is a Git LFS pointer"):
        load_language_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("content", [b"", b"\x80\x04nothing", b"PK\x03\x04 cut"])
def test_damaged_pickles_are_errors_in_words(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_language_model(str(folder))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00\xff\xff"])
def test_a_damaged_gguf_file_is_an_error_in_words(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises((ConfigurationError, SourceNotFoundError)):
        load_language_model(str(tmp_path / "model.gguf"))


def test_missing_tokenizer_is_reported(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises((ConfigurationError, SourceNotFoundError), match="tokenizer"):
        load_language_model(str(folder))


def test_layers_on_the_disk_are_refused(tiny_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    with pytest.raises(ConfigurationError, match=r"1 of its modules, such as model\.layers\.1, would lie on the disk"):
        pretrained._refuse_offloaded("some model", model)
    model.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": 0}
    pretrained._refuse_offloaded("some model", model)


def test_an_encoder_decoder_is_refused(tmp_path, tiny_folder):
    config = transformers.T5Config(vocab_size=512, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path / "t5" / name)
    with pytest.raises(ConfigurationError, match="T5"):
        load_language_model(str(tmp_path / "t5"))


def test_a_missing_package_is_an_error_in_words(tiny_folder):
    with pytest.raises(ConfigurationError, match=r"(?i)flash"):
        load_language_model(str(tiny_folder), attn_implementation="flash_attention_2")


@pytest.mark.parametrize("name", ["models/nothing", "nothing.gguf", "./nothing", "a/b/c", "data/x.json", "~/nothing"])
def test_misspelled_paths_are_not_looked_up_on_the_hub(name, tmp_path, monkeypatch):
    def look_up(*arguments, **named):
        raise AssertionError("the Hub was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", look_up)
    with pytest.raises(SourceNotFoundError, match="no such"):
        load_language_model(name)


def test_ids_on_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(could_be_hub_id, ["gpt2", "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-2-7b-chat-hf"]))
    assert not any(map(could_be_hub_id, ["data/zsre_eval.json", "a b", "/root/x", "../x", "x/y/z", "", "corpus.txt"]))
