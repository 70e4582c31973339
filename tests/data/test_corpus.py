"""Corpora of every form, and their packing."""

import importlib.machinery
import sys
import types

import pyarrow
import pytest
from pyarrow import parquet

from lightning_edit.data.corpus import TextCorpus, documents, pack
from lightning_edit.errors import ConfigurationError, DataFormatError, SourceNotFoundError
from tests.tiny_models import byte_level_tokenizer


def read(path, field="text"):
    return list(documents(str(path), field, "train"))


def test_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\n\n\ntwo\nlines\n")
    assert read(path) == ["one", "two\nlines"]
    path.write_bytes(b"one\r\n\r\ntwo" + b"\n\nlong" * 10_000 + b"\n\n\xff")
    parts = documents(str(path), "text", "train")
    assert [next(parts), next(parts)] == ["one", "two"]
    with pytest.raises(DataFormatError, match="not UTF-8"):
        list(parts)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataFormatError, match="not UTF-8"):
        read(path)
    with pytest.raises(SourceNotFoundError, match="no such file"):
        read("./none.txt")


def test_a_long_text_without_empty_lines_is_not_read_whole(tmp_path, monkeypatch):
    """As WikiText's, whose blank lines hold a space."""
    path = tmp_path / "a.txt"
    path.write_text(" = One = \n \n of one \n \n" * 2 + " = Two = \n" + "\n three")
    assert read(path) == ["= One = \n \n of one \n \n = One = \n \n of one \n \n = Two =", "three"]
    monkeypatch.setattr("lightning_edit.data.corpus._LONG", 16)
    assert read(path) == ["= One = \n \n of one", "= One = \n \n of one", "= Two =", "three"]


def test_lines_of_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "two"}\n')
    assert read(path, "body") == ["one", "two"]
    with pytest.raises(DataFormatError, match=r"record 0, field 'text'"):
        read(path)
    path.write_text("nonsense")
    with pytest.raises(DataFormatError, match="not valid JSON"):
        read(path)
    path.write_bytes(b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataFormatError, match="record 1: not valid UTF-8"):
        read(path)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", "two", None], "year": [1, 2, 3]}), path)
    texts = documents(str(path), "body", "train")
    assert [next(texts), next(texts)] == ["one", "two"]
    with pytest.raises(DataFormatError, match=r"a\.parquet, record 2, field 'body'"):
        next(texts)
    with pytest.raises(DataFormatError, match=r"record 0, field 'text': .*\['body', 'year'\]"):
        read(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(DataFormatError, match="or a damaged one"):
        read(path, "body")
    path.write_bytes(b"nonsense")
    with pytest.raises(DataFormatError, match="not a Parquet file"):
        read(path)


@pytest.fixture
def hub(monkeypatch):
    """The package datasets, with a Hub of one data set."""
    asked = []

    def load_dataset(name, configuration, *, split, streaming):
        asked.append((name, configuration, split, streaming))
        if name != "someone/texts":
            raise ConnectionError("no such data set")
        return iter([{"text": "one"}, {"text": "two"}])

    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_data_set_of_the_hub_is_streamed(hub):
    assert list(documents("someone/texts", "text", "validation", "raw")) == ["one", "two"]
    assert hub == [("someone/texts", "raw", "validation", True)]
    with pytest.raises(SourceNotFoundError, match=r"'someone/others' .* \(ConnectionError: no such data set\)"):
        list(documents("someone/others", "text", "train"))


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one"]}), path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install pyarrow"):
        read(path)
    with pytest.raises(ConfigurationError, match="pip install datasets"):
        read("someone/texts")


def test_packing_keeps_every_token_in_order():
    tokenizer = byte_level_tokenizer()
    texts = ["The capital of France", "On which continent is Brazil?"] * 5
    rows = pack(iter(texts), tokenizer, 8, 10_000)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids = [id for text in texts for id in tokenizer(text, add_special_tokens=False)["input_ids"] + end]
    assert rows.flatten().tolist() == ids[: len(ids) // 8 * 8]
    assert pack(iter(texts), tokenizer, 8, 20).shape == (2, 8)
    with pytest.raises(ConfigurationError, match=r"data\.corpus\.length"):
        TextCorpus("x", length=0)
    with pytest.raises(ConfigurationError, match=r"7 tokens are asked for, fewer than the 8 of one row"):
        TextCorpus("x", tokens=7, length=8).read(tokenizer)


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson"])
def test_the_ending_says_how_records_are_parted(tmp_path, ending):
    path = tmp_path / f"corpus{ending}"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two"}\n')
    assert list(documents(str(path), "text", "train")) == ["one", "two"]


@pytest.mark.parametrize("content", ['[{"text": "one"}, {"text": "two"}]', '["one", "two"]'])
def test_a_list_in_json_is_a_corpus(tmp_path, content):
    path = tmp_path / "corpus.json"
    path.write_text(content)
    assert list(documents(str(path), "text", "train")) == ["one", "two"]


def test_json_that_is_no_corpus_is_an_error(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text('{"text": "one"}')
    with pytest.raises(DataFormatError, match="expected a list of texts"):
        list(documents(str(path), "text", "train"))
    path.write_text('[{"other": "one"}]')
    with pytest.raises(DataFormatError, match=r"the fields are \['other'\]"):
        list(documents(str(path), "text", "train"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeffone\n\ntwo".encode())
    assert list(documents(str(path), "text", "train")) == ["one", "two"]


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_half_of_a_surrogate_pair_is_an_error_with_its_record(tmp_path, ending):
    path = tmp_path / f"corpus{ending}"
    path.write_text('{"text": "\\udcff"}\n' if ending == ".jsonl" else '[{"text": "\\udcff"}]')
    with pytest.raises(DataFormatError, match=r"record 0.*surrogate"):
        list(documents(str(path), "text", "train"))
