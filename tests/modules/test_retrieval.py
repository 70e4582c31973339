"""Fitting, testing and resuming an editor that indexes training records: IKE."""

import json

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.editors import IKE, load_editor
from lightning_edit.editors.checkpoint import load_weights, save_editor
from lightning_edit.errors import ConfigurationError
from lightning_edit.models import load_language_model
from tests.editors.test_routed_methods import training_records
from tests.testers import REQUESTS
from tests.tiny_models import language_model


def write_config(folder, tiny_folder, demonstrations=1):
    facts = "lightning_edit.data.WorldFacts"
    editor = {"class_path": "lightning_edit.editors.IKE", "init_args": {"demonstrations": demonstrations}}
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "lightning_edit.modules.RetrievalEditing",
            "init_args": {
                "language_model": {"name_or_path": str(tiny_folder)},
                "editor": editor,
                "evaluation": {"generate": False},
                "validation": {"generate": False},
            },
        },
        "data": {
            "train": {"class_path": facts, "init_args": {"split": "train", "limit": 8}},
            "test": {"class_path": facts, "init_args": {"split": "validation", "limit": 2}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "logger": False,
            "callbacks": [
                {"class_path": "lightning_edit.callbacks.LastCheckpoint"},
                {
                    "class_path": "lightning_edit.callbacks.TestReport",
                    "init_args": {"folder": str(folder / "report")},
                },
            ],
        },
    }
    path = folder / f"config-{demonstrations}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_an_index_is_fitted_tested_and_fitted_again_from_its_checkpoint(tmp_path, tiny_folder):
    config = write_config(tmp_path, tiny_folder)
    assert main(["fit", "--config", config]) == 0
    [checkpoint] = tmp_path.rglob("*.ckpt")
    editor = load_editor(checkpoint, load_language_model(str(tiny_folder)))
    assert len(editor.examples) == len(editor.embeddings) == 8
    assert main(["test", "--config", config, "--ckpt_path", str(checkpoint)]) == 0
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert written["counts"]["records"] == 2
    assert main(["fit", "--config", config, "--ckpt_path", str(checkpoint)]) == 0
    newest = max(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    again = load_editor(newest, load_language_model(str(tiny_folder)))
    assert torch.equal(again.embeddings, editor.embeddings)
    assert again.examples == editor.examples


def test_weights_of_an_index_of_another_size_are_loaded(tmp_path):
    model, editor, other = language_model("llama"), IKE(demonstrations=2), IKE(demonstrations=2)
    editor.index(training_records(5))
    other.index(training_records(3))
    path = save_editor(editor, model, tmp_path / "index.ckpt")
    load_weights(path, other, model)
    assert other.text_of(model, REQUESTS[:1]) == editor.text_of(model, REQUESTS[:1])
    other.embeddings = torch.zeros(5, 384, 1)
    load_weights(path, other, model)
    other.register_buffer("further", torch.zeros(1))
    with pytest.raises(ConfigurationError, match="of the same shape"):
        load_weights(path, other, model)
