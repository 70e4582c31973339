"""The settings in configs/editor are the published ones: the numbers are repeated here from the authors' files.

Sources: kmeng01/rome and kmeng01/memit (hparams), xpq-tech/PMET, scalable-model-editing/unified-model-editing,
jianghoucheng/AlphaEdit, Thartvigsen/GRACE at f674183, ECNU-ICALK/MELO at ed097eb, ICT-STAR/LocFT at 51db785, and
zjunlp/EasyEdit at 14cea82 for WISE and for the models that the authors have no settings for.
"""

from pathlib import Path

import pytest
import yaml

from lightning_edit.editors import EMMET, MEMIT, PMET, ROME, AlphaEdit, KnowledgeNeurons, ValueSettings
from lightning_edit.editors.configured import configured_editor

FOLDER = Path(__file__).parents[2] / "configs" / "editor"
MODELS = ["gpt2-xl", "gpt-j-6b", "llama-2-7b", "llama-3-8b", "mistral-7b", "qwen2.5-7b"]

# Steps, learning rate, weight decay, clamp norm and KL weight of a value search: ROME's and MEMIT's on GPT-2 XL and
# GPT-J, EasyEdit's on Llama and similar models, AlphaEdit's on Llama-3, and PMET's.
ROME_GPT = (20, 0.5, 0.5, 4.0, 0.0625)
MEMIT_XL, MEMIT_J = (20, 0.5, 0.5, 0.75, 0.0625), (25, 0.5, 0.5, 0.75, 0.0625)
LLAMA, LLAMA_3 = (25, 0.5, 1e-3, 4.0, 0.0625), (25, 0.1, 0.5, 0.75, 0.0625)
PMET_J, PMET_LLAMA, PMET_LLAMA_3 = (30, 0.2, 0.5, 0.75, 1.0), (20, 0.5, 0.5, 1.0, 0.0625), (25, 0.5, 0.5, 1.0, 0.0625)
XL_LAYERS, J_LAYERS, LLAMA_LAYERS = [13, 14, 15, 16, 17], [3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8]
# Method: for each of MODELS the layers, and the settings of the search.
SEARCHES = {
    "rome": [([17], ROME_GPT), ([5], ROME_GPT), *[([5], LLAMA)] * 4],
    "r-rome": [([17], ROME_GPT), ([5], ROME_GPT), *[([5], LLAMA)] * 4],
    "memit": [
        (XL_LAYERS, MEMIT_XL), (J_LAYERS, MEMIT_J), (LLAMA_LAYERS, LLAMA), (LLAMA_LAYERS, LLAMA_3),
        (LLAMA_LAYERS, LLAMA), (LLAMA_LAYERS, LLAMA),
    ],
    "emmet": [([17], MEMIT_XL), ([5], MEMIT_J), *[([5], LLAMA)] * 4],
    "pmet": [
        (XL_LAYERS, PMET_J), (J_LAYERS, PMET_J), (LLAMA_LAYERS, PMET_LLAMA), (LLAMA_LAYERS, PMET_LLAMA_3),
        (LLAMA_LAYERS, PMET_LLAMA), (LLAMA_LAYERS, PMET_LLAMA),
    ],
    "alphaedit": [
        (XL_LAYERS, MEMIT_XL), (J_LAYERS, MEMIT_J), (LLAMA_LAYERS, LLAMA_3), (LLAMA_LAYERS, LLAMA_3),
        (LLAMA_LAYERS, LLAMA_3), (LLAMA_LAYERS, LLAMA),
    ],
}  # fmt: skip
# Method: other settings, for each of MODELS or for all alike.
OTHERS = {
    "rome": {"original_keys": True},
    "r-rome": {"original_keys": False},
    "memit": {"covariance_weight": [20000.0, *[15000.0] * 5]},
    "emmet": {"covariance_weight": [1000.0, *[1.0] * 5], "constraint_ridge": 0.1},
    "pmet": {"covariance_weight": [6000.0, 6000.0, *[15000.0] * 4]},
    "alphaedit": {"threshold": 0.02, "ridge": [*[10.0] * 5, 1.0]},
    "knowledge-neurons": {"threshold": [0.2, 0.1, *[0.2] * 4], "prompt_share": 0.4, "steps": 20},
}
METHODS = list(OTHERS)
# Defaults of the classes, where the paper or its authors have a single one.
DEFAULTS = {
    ROME: {"original_keys": False, "search": ValueSettings(25, 0.5, 1e-3, 4.0, 0.0625)},
    MEMIT: {"covariance_weight": 15000.0, "search": ValueSettings(25, 0.5, 0.5, 0.75, 0.0625)},
    PMET: {"covariance_weight": 6000.0, "search": ValueSettings(30, 0.2, 0.5, 0.75, 1.0, satisfied_weight=0.1)},
    EMMET: {"constraint_ridge": 0.1, "covariance_ridge": 0.0, "search": ValueSettings(25, 0.5, 0.5, 0.75, 0.0625)},
    AlphaEdit: {"threshold": 0.02, "ridge": 10.0, "search": ValueSettings(25, 0.5, 0.5, 0.75, 0.0625)},
    KnowledgeNeurons: {
        "steps": 20, "threshold": 0.2, "prompt_share": 0.7, "min_neurons": 2, "max_neurons": 5, "answer_weight": 1.0,
        "target_weight": 8.0, "signed": False,
    },
}  # fmt: skip
FT = {"steps": 25, "learning_rate": 5e-4, "weight_decay": 0.0, "batch_size": None, "norm_constraint": None}
LORA = {"rank": 8, "alpha": 32.0, "dropout": 0.1, "learning_rate": 5e-3, "targets": ["q_proj", "v_proj"]}
ADALORA = {name: value for name, value in LORA.items() if name != "rank"} | {"target_rank": 8, "orthogonality": 0.5}
LOCFT = {**FT, "batch_size": 100, "shuffle": True, "end_token": True, "scored": "target"}
GRACE = {"learning_rate": 1.0, "radius": 1.0, "start": "cold", "replacement": "replace_prompt"}
WISE = {
    "mask_ratio": 0.2, "learning_rate": 1.0, "steps": 70, "outside": 5.0, "inside": 20.0, "between": 10.0,
    "activation_ratio": 0.88, "norm_constraint": 1.0, "density": 0.53,
}  # fmt: skip
# Model and method: settings, also those within tuning, margins and budget.
TUNED = {
    ("gpt2-xl", "ft-l"): {**FT, "sites": [0], "norm_constraint": 5e-4, "scored": "prompt_last"},
    ("gpt-j-6b", "ft-l"): {**FT, "sites": [0], "norm_constraint": 5e-5, "scored": "prompt_last"},
    ("llama-2-7b", "ft-l"): {**FT, "sites": [21], "scored": "prompt_last"},
    ("llama-3-8b", "ft-l"): {**FT, "sites": [21], "scored": "prompt_last"},
    ("mistral-7b", "ft-l"): {**FT, "sites": [21], "norm_constraint": 5e-5, "scored": "prompt_last"},
    ("qwen2.5-7b", "ft-l"): {**FT, "sites": [27], "scored": "prompt_last"},
    ("gpt2-xl", "ft-m"): {**FT, "sites": [0], "norm_constraint": 5e-4, "scored": "target"},
    ("gpt-j-6b", "ft-m"): {**FT, "sites": [21], "scored": "target"},
    ("llama-2-7b", "ft-m"): {**FT, "sites": [21], "scored": "target"},
    ("llama-3-8b", "ft-m"): {**FT, "sites": [21], "scored": "target"},
    ("mistral-7b", "ft-m"): {**FT, "sites": [21], "norm_constraint": 5e-5, "scored": "target"},
    ("qwen2.5-7b", "ft-m"): {**FT, "sites": [27], "scored": "target"},
    ("llama-3-8b", "locft-bf"): {**LOCFT, "sites": [22]},
    ("qwen2.5-7b", "locft-bf"): {**LOCFT, "sites": [6]},
    ("gpt2-xl", "lora"): {**LORA, "targets": ["attn.c_attn"], "steps": 30},
    ("gpt-j-6b", "lora"): {**LORA, "steps": 50},
    ("llama-2-7b", "lora"): {**LORA, "steps": 70},
    ("llama-3-8b", "lora"): {**LORA, "steps": 70},
    ("qwen2.5-7b", "lora"): {**LORA, "steps": 60},
    ("gpt2-xl", "adalora"): {**ADALORA, "targets": ["attn.c_attn"], "steps": 30},
    ("gpt-j-6b", "adalora"): {**ADALORA, "steps": 50},
    ("llama-2-7b", "adalora"): {**ADALORA, "steps": 70},
    ("llama-3-8b", "adalora"): {**ADALORA, "steps": 70},
    ("gpt2-xl", "grace"): {**GRACE, "site": "transformer.h.35.mlp.c_fc", "steps": 100},
    ("llama-2-7b", "grace"): {**GRACE, "site": 27, "steps": 50},
    ("qwen2.5-7b", "grace"): {**GRACE, "site": 18, "steps": 50},
    ("gpt2-xl", "melo"): {
        "key_site": "transformer.h.35.mlp.c_fc", "sites": ["transformer.h.36.mlp.c_fc", "transformer.h.37.mlp.c_fc"],
        "radius": 0.5, "rank": 2, "edits_per_block": 4, "scale": 350.0, "learning_rate": 1e-3, "steps": 50,
    },
    ("gpt2-xl", "wise"): {**WISE, "site": "transformer.h.8.mlp.c_fc", "steps": 40, "activation_ratio": 0.8},
    ("gpt-j-6b", "wise"): {**WISE, "site": 21, "outside": 15.0, "inside": 40.0, "between": 20.0},
    ("llama-2-7b", "wise"): {**WISE, "site": 27},
    ("llama-3-8b", "wise"): {
        **WISE, "site": 29, "steps": 30, "learning_rate": 0.9, "outside": 2.0, "activation_ratio": 0.5,
    },
    ("mistral-7b", "wise"): {**WISE, "site": 27},
    ("qwen2.5-7b", "wise"): {**WISE, "site": 23},
}  # fmt: skip
SEARCH = ("steps", "learning_rate", "weight_decay", "clamp_norm", "kl_weight")


def settings(model, method):
    return configured_editor(str(FOLDER / model / f"{method}.yaml")).hyperparameters


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_default_settings(kind):
    editor = kind()
    assert {name: getattr(editor, name) for name in DEFAULTS[kind]} == DEFAULTS[kind]


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("model", MODELS)
def test_settings_of_the_value_search(model, method):
    configured = settings(model, method)
    search = tuple(configured["search"][name] for name in SEARCH)
    assert (configured["layers"], search) == SEARCHES[method][MODELS.index(model)]


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("model", MODELS)
def test_other_settings_of_a_method(model, method):
    configured, number = settings(model, method), MODELS.index(model)
    expected = {name: value[number] if isinstance(value, list) else value for name, value in OTHERS[method].items()}
    assert {name: configured[name] for name in expected} == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_settings_of_every_method(model, method):
    text = (FOLDER / model / f"{method}.yaml").read_text()
    assert text.startswith("# "), "the first line names the source"
    configured = settings(model, method)
    reads_statistics = method != "knowledge-neurons"
    assert ("statistics" in configured) is reads_statistics
    if reads_statistics:
        assert configured["statistics"] == f"statistics/{model}"


def flat_settings(model, method):
    """The settings of a method with those of nested groups beside them."""
    configured = settings(model, method)
    nested = {
        name: value for group in ("tuning", "margins", "budget") for name, value in configured.get(group, {}).items()
    }
    return {**nested, **configured}


@pytest.mark.parametrize(("model", "method"), TUNED, ids=lambda value: value)
def test_settings_of_methods_that_tune(model, method):
    configured, expected = flat_settings(model, method), TUNED[model, method]
    assert {name: configured[name] for name in expected} == expected


def test_every_file_of_a_published_model_is_compared():
    files = {(path.parent.name, path.stem) for path in FOLDER.glob("*/*.yaml")}
    assert files == {*TUNED, *((model, method) for model in MODELS for method in OTHERS)}
    assert {*SEARCHES, "knowledge-neurons"} == set(OTHERS)
    assert {len(rows) for rows in SEARCHES.values()} == {len(MODELS)}


@pytest.mark.parametrize("model", MODELS)
def test_rome_and_r_rome_differ_in_their_keys_alone(model):
    authors, corrected = settings(model, "rome"), settings(model, "r-rome")
    assert authors.pop("original_keys") is True
    assert corrected.pop("original_keys") is False
    assert (authors["layers"], authors["search"]) == (corrected["layers"], corrected["search"])


def test_rome_for_smollm2_has_r_romes_correction():
    assert configured_editor(str(FOLDER / "rome.yaml")).hyperparameters["original_keys"] is False


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_for_smollm2_fit_the_model(path, smollm2):
    """The file names its own settings alone, and the model has the named sites."""
    hyperparameters = configured_editor(str(path)).hyperparameters
    described = yaml.safe_load(path.read_text()).get("init_args") or {}
    plain = {name: value for name, value in described.items() if not isinstance(value, dict)}
    assert {name: hyperparameters[name] for name in plain} == plain
    named = [described[name] for name in ("sites", "layers", "site", "key_site") if described.get(name) is not None]
    for value in named:
        wanted = value if isinstance(value, list) else [value]
        assert len(smollm2.layer_map.sites(wanted)) == len(wanted)
    if targets := described.get("targets"):
        assert len(smollm2.layer_map.sites_ending_in(targets, described.get("layers"))) >= len(targets)


def test_smollm2_has_settings_of_every_method():
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    tuned = {method for _, method in TUNED}
    assert names >= {*METHODS, *tuned, "ice", "ike", "scr", "mend", "malmen", "serac"} - {"r-rome"}
