"""Edits, editors, statistics, models and benchmarks on the Hub, against a local stand-in of its API."""

from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub

from lightning_edit.cli import main
from lightning_edit.data import ZsRE
from lightning_edit.editors import MEND, ROME, ContextSettings, GradientStep
from lightning_edit.editors.checkpoint import read_checkpoint, save_editor
from lightning_edit.edits import Edit, load_edit
from lightning_edit.errors import ConfigurationError, SourceNotFoundError
from lightning_edit.models import load_language_model
from lightning_edit.models.statistics import KeyStatistics
from tests.editors.locating import statistics_of
from tests.hub.stand_in import TOKEN, hub_server
from tests.testers import REQUESTS, target_log_probs
from tests.tiny_models import language_model


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = huggingface_hub.constants
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / "cache"), raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def model(tiny_folder):
    return load_language_model(str(tiny_folder))


def test_an_edit(hub, model):
    edit = GradientStep([1], 0.05).edit(model, REQUESTS[:1])
    address = edit.push_to_hub("someone/an-edit", licence="apache-2.0", measures={"edit_success": 0.98765})
    assert address.startswith(hub.address)
    files = hub.files["models/someone/an-edit"]
    assert set(files) == {"edit.json", "edit.safetensors", "README.md"}
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "| edit_success | 0.9877 |" in card
    assert str(model.fingerprint) in card
    assert "| The capital of France is | Paris | Rome |" in card
    loaded = Edit.from_pretrained("someone/an-edit")
    assert loaded.provenance == edit.provenance
    with edit.applied(model) as edited:
        expected = target_log_probs(edited, REQUESTS)
    with loaded.applied(model) as edited:
        assert target_log_probs(edited, REQUESTS) == expected


def test_a_trained_editor(hub, model, tmp_path):
    editor = MEND(sites=[1, 2], rank=4)
    editor.setup(model)
    with torch.no_grad():
        next(editor.parameters()).add_(0.25)
    editor.push_to_hub("someone/mend", model)
    assert set(hub.files["models/someone/mend"]) == {"editor.ckpt", "README.md"}
    loaded = MEND.from_pretrained("someone/mend", model)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in editor.state_dict().items())
    with pytest.raises(ConfigurationError, match="holds a MEND, not a GradientStep"):
        GradientStep.from_pretrained("someone/mend", model)
    fact = ["--prompt", "The capital of France is", "--target", "Rome", "--save", str(tmp_path / "edit")]
    assert main(["edit", "--ckpt_path", "hf://someone/mend", *fact]) == 0
    assert load_edit(tmp_path / "edit").provenance.method == "MEND"


def test_statistics(hub, model):
    statistics = statistics_of(model)
    statistics.push_to_hub("someone/statistics")
    loaded = KeyStatistics.from_pretrained("someone/statistics")
    assert loaded.corpus == statistics.corpus
    assert all(torch.equal(moment, loaded.moments[site]) for site, moment in statistics.moments.items())


def test_the_command(hub, model, tmp_path, capsys):
    edit = GradientStep([1], 0.05).edit(model, REQUESTS[:1]).save(tmp_path / "edit")
    statistics = statistics_of(model).save(tmp_path / "statistics")
    editor = MEND(sites=[1, 2], rank=4)
    editor.setup(model)
    checkpoint = save_editor(editor, model, tmp_path / "editor.ckpt")
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {"edit_success/token_accuracy": 0.5, "x": None}}))
    for path, repository in ((edit, "someone/e"), (statistics, "someone/s"), (checkpoint, "someone/c")):
        options = ["--metrics", str(tmp_path / "metrics.json")]
        assert main(["push", "--path", str(path), "--repo", repository, *options]) == 0
        assert "README.md" in hub.files[f"models/{repository}"]
    assert "| edit_success/token_accuracy | 0.5 |" in hub.files["models/someone/c"]["README.md"].decode()
    assert main(["generate", "--edits", "hf://someone/e", "--prompts", "Answer:"]) == 0
    assert main(["push", "--path", str(tmp_path), "--repo", "someone/x"]) == 1
    assert "neither a saved edit, statistics, nor a checkpoint" in capsys.readouterr().err


def test_what_the_hub_refuses_is_an_error_in_words(hub, model, monkeypatch):
    edit = GradientStep([1], 0.05).edit(model, REQUESTS[:1])
    with pytest.raises(ConfigurationError, match=r"someone/e cannot be written on the Hub .*log in"):
        edit.push_to_hub("someone/e", token="hf_wrong")
    with pytest.raises(ConfigurationError, match="expected owner/name"):
        edit.push_to_hub("e")
    with pytest.raises(SourceNotFoundError, match="'someone/nothing' is no repository that can be reached"):
        load_edit("hf://someone/nothing")


def test_a_path_that_does_not_exist_is_not_looked_up(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (load_edit, KeyStatistics.load, read_checkpoint):
        with pytest.raises(SourceNotFoundError):
            load("runs/something")
    assert hub.requests == []
    editor = ROME(layers=[1], statistics="runs/statistics", contexts=ContextSettings([["{}"]]))
    editor.fit_without_corpus(language_model("llama"))
    assert hub.requests == []


def test_a_model(hub, tiny_folder, model, monkeypatch):
    hub.files["models/someone/tiny"] = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: False, raising=False)
    loaded = load_language_model("someone/tiny")
    assert loaded.fingerprint.digest == model.fingerprint.digest
    with pytest.raises(SourceNotFoundError, match="neither a local folder or GGUF file nor reachable on the Hub"):
        load_language_model("someone/other")


def test_a_benchmark(hub):
    record = {
        "subject": "Mount Doe", "src": "What range is Mount Doe in?", "pred": "", "rephrase": "Mount Doe's range?",
        "alt": "Andes", "answers": ["Alps"], "loc": "nq question: who is it", "loc_ans": "Ann", "cond": "x",
    }  # fmt: skip
    hub.files["datasets/someone/data"] = {"zsre_mend_eval.json": json.dumps([record]).encode()}
    [read] = ZsRE("someone/data").read().records
    assert read.requests[0].target == "Andes"
