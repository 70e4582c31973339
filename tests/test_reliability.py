"""A small form of the reliability campaign: kills, damaged files, concurrent writers, full disks."""

import multiprocessing
import os

import pytest

from benchmarks.reliability import campaign, failures, small_disk
from lightning_edit.errors import DiskFullError
from lightning_edit.files import check_space, remove_unfinished, replace_file, replace_folder
from lightning_edit.models.fingerprint import tokenizer_digest
from tests.tiny_models import byte_level_tokenizer, language_model, sentencepiece_tokenizer


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the campaign forks its work")
def test_a_small_campaign_finds_nothing(tmp_path):
    result = campaign(seed=1, kills=1, mutations=300, configurations=20, folder=tmp_path)
    assert failures(result) == []
    assert all(counts["killed"] == 1 for counts in result["kills"].values())
    assert result["concurrent"]["loads"] > 10
    outcomes = result["readers and artifacts"]["outcomes"]
    assert sum(outcomes.values()) == 300
    assert outcomes["edit: refused"] > 10


def test_what_a_dead_process_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "last.ckpt"
    dead, another = tmp_path / ".last.ckpt.0123abcd.unfinished", tmp_path / ".other.0123abcd.unfinished"
    folder = tmp_path / ".last.ckpt.abcd0123.unfinished"
    folder.mkdir()
    for file in (dead, another, folder / "half"):
        file.write_bytes(b"half")
    with replace_file(path) as temporary:
        assert not dead.exists()
        assert not folder.exists()
        remove_unfinished(path)
        assert temporary.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == [another.name, path.name]


def test_a_file_that_does_not_fit_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(DiskFullError, match=r"needs .* MB, and the disk has"):
        check_space(tmp_path / "a" / "file", 2**60)
    with pytest.raises(DiskFullError), replace_folder(tmp_path / "folder", 2**60):
        pytest.fail("nothing may be written")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_earlier_file(tmp_path):
    with small_disk(tmp_path, 64) as disk:
        if disk is None:
            pytest.skip("no small disk can be mounted here")
        path = disk / "file"
        with replace_file(path) as temporary:
            temporary.write_text("earlier")
        with pytest.raises(DiskFullError, match="the disk is full"), replace_file(path) as temporary:
            temporary.write_bytes(os.urandom(200_000))
        assert path.read_text() == "earlier"
        assert [file.name for file in disk.iterdir()] == ["file"]


def test_the_fingerprint_knows_the_tokenizer():
    model = language_model("llama")
    assert model.fingerprint.tokenizer == tokenizer_digest(byte_level_tokenizer())
    assert model.fingerprint.tokenizer != tokenizer_digest(byte_level_tokenizer(bos=True))
    assert model.fingerprint.tokenizer != tokenizer_digest(sentencepiece_tokenizer())
    other = language_model("llama", tokenizer="sentencepiece")
    with pytest.warns(UserWarning, match="another tokenizer than the one it is used with"):
        assert "another tokenizer" in (other.check_base(model.fingerprint, "edit", "tiny") or "")
