"""Invalid settings are refused where they are given."""

import pytest
import torch

from lightning_edit.components import build
from lightning_edit.editors import (
    EMMET,
    MALMEN,
    MELO,
    MEMIT,
    MEND,
    PMET,
    ROME,
    SERAC,
    AlphaEdit,
    ContextSettings,
    Editor,
    FineTuning,
    GradientStep,
    KnowledgeNeurons,
    LoRA,
    ValueSettings,
)
from lightning_edit.errors import ConfigurationError, EditError, LayerMapError
from lightning_edit.models.statistics import Corpus, IdentityStatistics, KeyStatistics
from lightning_edit.records import EditRequest
from tests.testers import REQUESTS
from tests.tiny_models import language_model

SEARCHING = [ROME, MEMIT, EMMET, PMET, AlphaEdit]
KINDS = [*SEARCHING, KnowledgeNeurons]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *((kind, {"layers": []}, "editor.layers: name at least one") for kind in KINDS),
        *((kind, {"layers": ["model.layers.1.mlp.up_proj"]}, "expected a list of layers' numbers") for kind in KINDS),
        *((kind, {"layers": 1}, "editor.layers: expected a list of layers' numbers, found 1") for kind in KINDS),
        *(
            (kind, {"search": {"steps": "5"}}, "editor.search.steps: expected a number, found '5'")
            for kind in SEARCHING
        ),
        (KnowledgeNeurons, {"steps": "5"}, "editor.steps: expected a number, found '5'"),
        (ROME, {"layers": [1, 2]}, r"editor.layers: ROME edits one layer, found \[1, 2\]"),
        *((kind, {"search": {"steps": 0}}, "editor.search.steps: expected at least 1, found 0") for kind in SEARCHING),
        (KnowledgeNeurons, {"steps": 0}, "editor.steps: expected at least 1, found 0"),
        (MEMIT, {"search": {"learning_rate": 0.0}}, "editor.search.learning_rate: expected more than 0, found 0"),
        (MEMIT, {"search": {"clamp_norm": -1.0}}, "editor.search.clamp_norm: expected more than 0"),
        (ROME, {"search": {"weight_decay": -1.0}}, "editor.search.weight_decay: expected at least 0"),
        (ROME, {"search": {"kl_weight": float("nan")}}, "editor.search.kl_weight: expected at least 0, found nan"),
        *((kind, {"covariance_weight": 0.0}, "editor.covariance_weight: expected") for kind in (MEMIT, PMET, EMMET)),
        (EMMET, {"covariance_ridge": -1.0}, "editor.covariance_ridge: expected at least 0"),
        (AlphaEdit, {"ridge": -1.0}, "editor.ridge: expected more than 0"),
        (PMET, {"search": {"satisfied_weight": -1.0}}, "editor.search.satisfied_weight: expected at least 0"),
        (MEMIT, {"covariance": "none"}, "editor.covariance: expected one of"),
        (MEMIT, {"contradictions": "first"}, "editor.contradictions: expected one of"),
        (KnowledgeNeurons, {"contradictions": "first"}, "editor.contradictions: expected one of"),
        (KnowledgeNeurons, {"max_neurons": 0}, "editor.max_neurons: expected at least 1"),
        (KnowledgeNeurons, {"min_neurons": 3, "max_neurons": 2}, "editor.max_neurons: expected at least 3"),
        (
            KnowledgeNeurons,
            {"prompt_share": 1.5},
            "editor.prompt_share: expected a share of the prompts, at most 1, found 1.5",
        ),
        (KnowledgeNeurons, {"answer_weight": float("nan")}, "editor.answer_weight: expected at least 0, found nan"),
        (KnowledgeNeurons, {"target_weight": "8"}, "editor.target_weight: expected a number, found '8'"),
        (KnowledgeNeurons, {"threshold": 1.0}, "editor.threshold: expected a share below 1"),
        (ROME, {"contexts": {"templates": [["{}"], []]}}, "a group without templates"),
        *((kind, {"sites": []}, "editor.sites: name at least one") for kind in (MEND, MALMEN, GradientStep, MELO)),
        (FineTuning, {"sites": []}, "editor.sites: name at least one"),
        (LoRA, {"targets": []}, "editor.targets: name at least one"),
        *((kind, {"rank": 0}, "rank: expected at least 1, found 0") for kind in (MEND, MALMEN, SERAC, LoRA, MELO)),
        (SERAC, {"threshold": 2}, "editor.threshold: expected at most 1, found 2"),
        (SERAC, {"threshold": float("nan")}, "editor.threshold: expected at least 0, found nan"),
        (SERAC, {"adapted_layers": 0}, "editor.adapted_layers: expected at least 1"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(kind, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        build({"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": settings}, Editor, "here")


def test_a_settings_class_cannot_be_replaced_by_its_content():
    with pytest.raises(ConfigurationError, match=r"editor\.contexts: expected ContextSettings, found \[\['\{\}'\]\]"):
        ROME(contexts=[["{}"]])


def test_omitted_settings_take_the_defaults_of_the_method():
    """Not those of the settings' class: a file that names one setting leaves the others at the method's defaults."""
    described = {"class_path": "lightning_edit.editors.MEMIT", "init_args": {"search": {"steps": 3}}}
    assert build(described, Editor, "here").search == ValueSettings(steps=3, clamp_norm=0.75, weight_decay=0.5)


@pytest.mark.parametrize("kind", [MEMIT, EMMET, PMET, AlphaEdit, KnowledgeNeurons])
@pytest.mark.parametrize("layers", [[1, 1], [1, -2]])
def test_a_layer_named_twice_is_refused(kind, layers):
    model = language_model("llama")
    assert len(model.layer_map) == 3, "so that 1 and -2 are the same one"
    editor = kind(layers=layers)
    if kind is not KnowledgeNeurons:
        editor.use_statistics(IdentityStatistics())
    with pytest.raises(LayerMapError, match="named twice"):
        editor.edit(model, REQUESTS[:1])


@pytest.mark.parametrize("contexts", [[["{}"]], [["{}"], ["Well. {}", "So, {}"]]])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_requests_that_share_a_key_need_a_ridge(family, contexts):
    """The two keys differ only by rounding, so the system has a solution, but of arbitrary size."""
    model = language_model(family)
    editor = EMMET(
        layers=[1],
        covariance="identity",
        contexts=ContextSettings(contexts),
        search=ValueSettings(steps=2),
        constraint_ridge=0.0,
    )
    others = [EditRequest(f"The capital of {name} is", "Rome", name) for name in ("Italy", "Peru", "Chad", "Oman")]
    same = EditRequest("The capital of Peru, in South America, is", "Oslo", "Peru")
    assert editor.edit(model, others)
    with pytest.raises(EditError, match=r"read the same key .* editor.constraint_ridge"):
        editor.edit(model, [*others, same])
    with pytest.raises(EditError, match=r"read the same key .* editor.constraint_ridge"):
        editor.edit(model, [others[0], others[0]])


@pytest.mark.parametrize("kind", [ROME, MEMIT])
def test_an_update_that_is_not_finite_is_reported_and_the_others_are_kept(kind, monkeypatch):
    model = language_model("llama")
    editor = kind(layers=[1], covariance="identity", contexts=ContextSettings([["{}"]]), search=ValueSettings(steps=2))
    whole = kind.updates

    def broken(self, model, job, statistics):
        updates = whole(self, model, job, statistics)
        for changes in updates.values():
            changes.a[-1] = torch.inf
        return updates

    good = editor.edit_each(model, REQUESTS[:2])
    monkeypatch.setattr(kind, "updates", broken)
    with pytest.warns(UserWarning, match=r"1 of 2 requests are left out: the update of .* is not finite"):
        edits = editor.edit_each(model, REQUESTS[:2])
    assert edits[0].provenance.failed == ()
    assert repr(REQUESTS[1].id) in edits[1].provenance.failed[0]
    for site, delta in good[0].deltas.items():
        torch.testing.assert_close(edits[0].deltas[site].dense(), delta.dense())
        assert not edits[1].deltas[site].dense().any()


def test_an_update_that_is_not_finite_leaves_no_keys_behind(monkeypatch):
    model = language_model("llama")
    moments = {site.name: torch.eye(site.fan_in) / 100 for site in model.layer_map.sites([1])}
    editor = AlphaEdit(layers=[1], threshold=0.1, contexts=ContextSettings([["{}"]]), search=ValueSettings(steps=2))
    editor.use_statistics(KeyStatistics(moments, Corpus("", 8, 1000, ""), model.name, model.fingerprint))
    whole = AlphaEdit.updates

    def broken(self, model, job, statistics):
        updates = whole(self, model, job, statistics)
        for changes in updates.values():
            changes.a[-1] = torch.inf
        return updates

    monkeypatch.setattr(AlphaEdit, "updates", broken)
    with pytest.warns(UserWarning, match="is not finite"):
        edits = editor.edit_each(model, REQUESTS[:2])
    assert edits[0].state
    assert not edits[1].state
