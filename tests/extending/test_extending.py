"""What a user adds in a module of their own works through YAML, without a change of the package."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.editors import GradientStep
from lightning_edit.edits import Edit, EditSequence, Provenance, load_edit
from lightning_edit.edits.hooks import added_terms
from lightning_edit.errors import ConfigurationError, EditError, LayerMapError
from lightning_edit.models import load_language_model
from tests.testers import REQUESTS, EditorTester
from tests.tiny_models import language_model


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("my_extension", None)


def extension():
    import my_extension

    return my_extension


class TestTargetBias(EditorTester):
    """The whole suite of editors holds for it."""

    def make(self, model):
        return extension().TargetBias(2.0)


def test_a_test_run_with_everything_from_outside(tiny_folder, tmp_path, monkeypatch):
    # Without a logger, the configuration is written into the current folder.
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": "lightning_edit.modules.EditingModule",
            "init_args": {
                "editor": {"class_path": "my_extension.TargetBias", "init_args": {"strength": 3.0}},
                "language_model": {"name_or_path": str(tiny_folder)},
                "metrics": [{"class_path": "my_extension.AnswerLength"}],
            },
        },
        "data": {
            "test": {
                "class_path": "my_extension.MyFacts",
                "init_args": {
                    "facts": {"The capital of France is": "Rome", "The capital of Italy is": "Paris the city"}
                },
            }
        },
        "trainer": {
            "logger": False,
            "callbacks": [
                {"class_path": "lightning_edit.callbacks.TestReport", "init_args": {"folder": str(tmp_path)}}
            ],
        },
    }
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "--config", str(tmp_path / "outside.yaml")]) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert written["counts"]["probes"] == {"edit_success/": 2, "locality/常识": 2}
    assert "locality/常识/token_accuracy" in written["metrics"]
    assert len(lines) == 4
    encoder = load_language_model(str(tiny_folder)).encoder
    lengths = [len(encoder.encode(line["prompt"], line["expected"][0][0]).target_ids) for line in lines]
    assert [line["measures"]["answer_length"] for line in lines] == lengths
    assert written["metrics"]["answer_length"] == pytest.approx(sum(lengths) / 4)


def test_an_edit_of_its_own_kind_is_saved_loaded_and_joined(tmp_path):
    model = language_model("llama")
    editor = extension().TargetBias(1.0)
    first, second = (editor.edit(model, [request]) for request in REQUESTS[:2])
    loaded = load_edit(first.save(tmp_path / "edit"))
    assert loaded.kind == "bias"
    assert torch.equal(loaded.bias, first.bias)
    sequence = EditSequence([loaded]).then(editor.edit(model, [REQUESTS[1]], after=EditSequence([loaded])))
    [layer] = sequence.layers
    torch.testing.assert_close(layer.bias, first.bias + second.bias)
    with pytest.raises(EditError, match="cannot be merged"):
        EditSequence([second]).merge(model)


class Unmergeable(Edit):
    """A kind without changes of weights that does not say so."""

    kind = "unmergeable"

    def layered(self, below, model):
        return nullcontext(below)

    def write(self, folder):
        return {}

    @classmethod
    def read(cls, folder, details, provenance):
        return cls(provenance)


def test_a_kind_without_weight_changes_is_never_merged_as_nothing():
    model = language_model("llama")
    weights = GradientStep([-1]).edit(model, REQUESTS[:1])
    other = Unmergeable(Provenance.of(model, "none", {}, REQUESTS[1:2]))
    for merge in (other.merge, EditSequence([weights, other]).merge):
        with pytest.raises(EditError, match=r"cannot be merged: edits of the kind 'unmergeable'"):
            merge(model)
    with pytest.raises(EditError, match="cannot be exported as a LoRA adapter"):
        EditSequence([weights, other]).to_peft(model, "nowhere")


def test_a_kind_without_a_name_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match="Nameless needs a kind"):
        type(
            "Nameless",
            (Unmergeable.__base__,),
            {name: vars(Unmergeable)[name] for name in ("layered", "write", "read")},
        )


def test_an_argument_without_an_attribute_is_named():
    class Renamed(GradientStep):
        def __init__(self, power=1.0):
            super().__init__([-1])
            self.strength = power

    with pytest.raises(ConfigurationError, match="Renamed does not keep its argument power"):
        Renamed().hyperparameters  # noqa: B018 - the property raises


def test_the_head_is_no_edit_site():
    model = language_model("llama")
    with pytest.raises(LayerMapError, match="'lm_head' is outside the blocks"):
        GradientStep(["lm_head"]).edit(model, REQUESTS[:1])
    with pytest.raises(LayerMapError, match="'lm_head' is outside the blocks"), added_terms(model, {"lm_head": None}):
        pass
