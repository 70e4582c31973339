"""The settings in configs/editor are the published ones: the numbers are repeated here from the authors' files.

Sources: kmeng01/rome and kmeng01/memit (hparams), xpq-tech/PMET, scalable-model-editing/unified-model-editing,
jianghoucheng/AlphaEdit, and zjunlp/EasyEdit at 14cea82 for the models that the authors have no settings for.
"""

from pathlib import Path

import pytest

from lightning_edit.editors import EMMET, MEMIT, PMET, ROME, AlphaEdit, KnowledgeNeurons, ValueSettings
from lightning_edit.editors.configured import configured_editor

FOLDER = Path(__file__).parents[2] / "configs" / "editor"
MODELS = ["gpt2-xl", "gpt-j-6b", "llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b"]
METHODS = ["rome", "r-rome", "memit", "emmet", "pmet", "alphaedit", "knowledge-neurons"]

# Model and method: layers, steps, learning rate, weight decay, clamp norm, KL weight.
SEARCHES = {
    ("gpt2-xl", "rome"): ([17], 20, 0.5, 0.5, 4.0, 0.0625),
    ("gpt-j-6b", "rome"): ([5], 20, 0.5, 0.5, 4.0, 0.0625),
    ("llama-2-7b", "rome"): ([5], 25, 0.5, 1e-3, 4.0, 0.0625),
    ("llama-3-8b", "rome"): ([5], 25, 0.5, 1e-3, 4.0, 0.0625),
    ("mistral-7b", "rome"): ([5], 25, 0.5, 1e-3, 4.0, 0.0625),
    ("qwen2.5-7b", "rome"): ([5], 25, 0.5, 1e-3, 4.0, 0.0625),
    ("gpt2-xl", "memit"): ([13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, 0.0625),
    ("gpt-j-6b", "memit"): ([3, 4, 5, 6, 7, 8], 25, 0.5, 0.5, 0.75, 0.0625),
    ("llama-2-7b", "memit"): ([4, 5, 6, 7, 8], 25, 0.5, 1e-3, 4.0, 0.0625),
    ("gpt2-xl", "alphaedit"): ([13, 14, 15, 16, 17], 20, 0.5, 0.5, 0.75, 0.0625),
    ("llama-3-8b", "alphaedit"): ([4, 5, 6, 7, 8], 25, 0.1, 0.5, 0.75, 0.0625),
    ("gpt-j-6b", "pmet"): ([3, 4, 5, 6, 7, 8], 30, 0.2, 0.5, 0.75, 1.0),
}
# Model, method and setting.
OTHERS = {
    ("gpt2-xl", "memit", "covariance_weight"): 20000.0,
    ("gpt-j-6b", "memit", "covariance_weight"): 15000.0,
    ("llama-3-8b", "memit", "covariance_weight"): 15000.0,
    ("gpt-j-6b", "pmet", "covariance_weight"): 6000.0,
    ("gpt2-xl", "emmet", "covariance_weight"): 1000.0,
    ("gpt-j-6b", "emmet", "covariance_weight"): 1.0,
    ("llama-3-8b", "alphaedit", "threshold"): 0.02,
    ("llama-3-8b", "alphaedit", "ridge"): 10.0,
    ("gpt-j-6b", "knowledge-neurons", "threshold"): 0.1,
    ("gpt2-xl", "knowledge-neurons", "threshold"): 0.2,
    ("gpt2-xl", "knowledge-neurons", "share"): 0.4,
    ("gpt2-xl", "knowledge-neurons", "steps"): 20,
}
# Defaults of the classes, where the paper or its authors have a single one.
DEFAULTS = {
    ROME: {"original_keys": False, "search": ValueSettings(25, 0.5, 1e-3, 4.0, 0.0625)},
    MEMIT: {"covariance_weight": 15000.0, "search": ValueSettings(25, 0.5, 0.5, 0.75, 0.0625)},
    PMET: {"covariance_weight": 6000.0, "search": ValueSettings(30, 0.2, 0.5, 0.75, 1.0, satisfied_weight=0.1)},
    EMMET: {"constraint_ridge": 0.1, "covariance_ridge": 0.0, "search": ValueSettings(25, 0.5, 0.5, 0.75, 0.0625)},
    AlphaEdit: {"threshold": 0.02, "ridge": 10.0, "search": ValueSettings(25, 0.5, 0.5, 0.75, 0.0625)},
    KnowledgeNeurons: {
        "steps": 20, "threshold": 0.2, "share": 0.7, "at_least": 2, "at_most": 5, "answer_weight": 1.0,
        "target_weight": 8.0, "signed": False,
    },
}  # fmt: skip
SEARCH = ("steps", "learning_rate", "weight_decay", "clamp_norm", "kl_weight")


def settings(model, method):
    return configured_editor(str(FOLDER / model / f"{method}.yaml")).hyperparameters


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_default_settings(kind):
    editor = kind()
    assert {name: getattr(editor, name) for name in DEFAULTS[kind]} == DEFAULTS[kind]


@pytest.mark.parametrize(("model", "method"), SEARCHES)
def test_settings_of_the_value_search(model, method):
    configured = settings(model, method)
    search = tuple(configured["search"][name] for name in SEARCH)
    assert (configured["layers"], *search) == SEARCHES[model, method]


@pytest.mark.parametrize(("model", "method", "name"), OTHERS)
def test_settings_of_a_single_method(model, method, name):
    configured = settings(model, method)
    assert {**configured, **configured.get("search", {})}[name] == OTHERS[model, method, name]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_settings_of_every_method(model, method):
    text = (FOLDER / model / f"{method}.yaml").read_text()
    assert text.startswith("# "), "the first line names the source"
    configured = settings(model, method)
    assert configured.get("statistics", f"statistics/{model}") == f"statistics/{model}"


@pytest.mark.parametrize("model", MODELS)
def test_rome_and_r_rome_differ_in_their_keys_alone(model):
    authors, corrected = settings(model, "rome"), settings(model, "r-rome")
    assert authors.pop("original_keys") is True
    assert corrected.pop("original_keys") is False
    assert (authors["layers"], authors["search"]) == (corrected["layers"], corrected["search"])


def test_rome_for_smollm2_has_r_romes_correction():
    assert configured_editor(str(FOLDER / "rome.yaml")).hyperparameters["original_keys"] is False


@pytest.mark.parametrize("method", [method for method in METHODS if method != "r-rome"])
def test_smollm2_has_settings_of_every_method(method):
    assert configured_editor(str(FOLDER / f"{method}.yaml"))
