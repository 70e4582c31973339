"""ROME, R-ROME, MEMIT, EMMET, PMET and AlphaEdit against numbers computed by the authors' own code on a tiny GPT-2.

Sources (commits in the file): kmeng01/rome, scalable-model-editing/rebuilding-rome, kmeng01/memit,
scalable-model-editing/unified-model-editing, xpq-tech/PMET and jianghoucheng/AlphaEdit, run in float64 with fixed
contexts and second moments. The authors stop a search at a loss of 0.05.
"""

from types import MappingProxyType

import pytest

from lightning_edit.editors import EMMET, MEMIT, PMET, ROME, AlphaEdit, ContextSettings, ValueSettings
from lightning_edit.editors.value_search import search_values
from lightning_edit.edits import EditSequence
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.records import EditRequest
from tests.editors.golden_gpt2 import golden_model, golden_values
from tests.editors.test_mend_golden import close, double

TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def golden():
    return golden_values("locate")


@pytest.fixture(scope="module")
def model():
    return golden_model()


def requests_of(golden, places):
    requests = []
    for place in places:
        rewrite = golden["requests"][place]
        prompt = rewrite["prompt"].replace("{}", rewrite["subject"])
        requests.append(EditRequest(prompt, rewrite["target_new"]["str"], rewrite["subject"], id=str(place)))
    return requests


def make(kind, golden, model, scenario, moments="memit", flat=False, search=MappingProxyType({}), **settings):
    wanted = scenario["hparams"]
    groups = golden["contexts"]
    editor = kind(
        layers=wanted["layers"],
        contexts=ContextSettings([[template for group in groups for template in group]] if flat else groups),
        search=ValueSettings(
            steps=wanted["v_num_grad_steps"],
            learning_rate=wanted["v_lr"],
            weight_decay=wanted["v_weight_decay"],
            clamp_norm=wanted["clamp_norm_factor"],
            kl_weight=wanted["kl_factor"],
            stop_below=0.05,
            **search,
        ),
        covariance="fitted" if wanted["mom2_adjustment"] else "identity",
        **settings,
    )
    if wanted["mom2_adjustment"]:
        second_moments = {site: double(values) for site, values in golden["second_moment"][moments].items()}
        editor.use_statistics(
            KeyStatistics(second_moments, Corpus("fixed", 1, 3145, ""), model.name, model.fingerprint)
        )
    return editor


def check(golden, model, scenario, editor, after=None):
    edit = editor.edit(model, requests_of(golden, scenario["requests"]), after)
    assert [f"{site}.weight" for site in edit.deltas] == list(scenario["update"])
    for site, delta in edit.deltas.items():
        close(model.layer_map.named_site(site).oriented(delta.dense()), scenario["update"][f"{site}.weight"], TOLERANCE)
    return edit


def check_search(golden, model, scenario, editor):
    """Every loss on the way, and the change that was found."""
    sites = [model.layer_map.site(layer) for layer in editor.edited_layers(model)]
    templates = [template for group in editor.contexts.templates for template in group]
    wanted = requests_of(golden, scenario["requests"])
    values = search_values(model, wanted, templates, editor.taps(model, sites), editor.search)
    for value, losses, delta in zip(values, scenario["losses"], scenario["deltas"], strict=True):
        close(double(value.losses), losses, TOLERANCE)
        if delta is not None:
            close(value.delta["value"], delta, TOLERANCE)


@pytest.mark.parametrize("name", ["single_0", "single_1", "single_2", "tight_clamp_1", "no_mom2_0", "early_stop_3"])
def test_rome_as_published(golden, model, name):
    scenario = golden["scenarios"][f"rome/{name}"]
    editor = make(ROME, golden, model, scenario, flat=True, original_keys=True)
    check_search(golden, model, scenario, editor)
    check(golden, model, scenario, editor)


@pytest.mark.parametrize("name", ["rrome_0", "rrome_1", "rrome_2"])
def test_r_rome_is_rome_with_one_key(golden, model, name):
    scenario = golden["scenarios"][f"rrome/{name}"]
    check(golden, model, scenario, make(ROME, golden, model, scenario, flat=True))


@pytest.mark.parametrize("name", ["n1", "n3", "n3_tight_clamp"])
def test_memit(golden, model, name):
    scenario = golden["scenarios"][f"memit/{name}"]
    editor = make(MEMIT, golden, model, scenario, covariance_weight=scenario["hparams"]["mom2_update_weight"])
    check_search(golden, model, scenario, editor)
    check(golden, model, scenario, editor)


@pytest.mark.parametrize("name", ["n1", "n3", "n3_norm_lambda"])
def test_emmet(golden, model, name):
    scenario = golden["scenarios"][f"emmet/{name}"]
    wanted = scenario["hparams"]
    settings = {
        "covariance_weight": wanted["mom2_update_weight"],
        "constraint_ridge": wanted["emmet_lambda"],
        "covariance_ridge": wanted["update_norm_lambda"],
    }
    check(golden, model, scenario, make(EMMET, golden, model, scenario, **settings))


@pytest.mark.parametrize("name", ["n1", "n3", "branch_3_low_kl"])
def test_pmet(golden, model, name):
    scenario = golden["scenarios"][f"pmet/{name}"]
    weight = scenario["hparams"]["mom2_update_weight"]
    search = {"satisfied_weight": 0.1, "satisfied_kl": 0.01}
    editor = make(PMET, golden, model, scenario, search=search, covariance_weight=weight)
    check_search(golden, model, scenario, editor)
    check(golden, model, scenario, editor)


def test_alphaedit_and_a_second_batch_on_top(golden, model, tmp_path):
    first, second = golden["scenarios"]["alphaedit/batch1_n2"], golden["scenarios"]["alphaedit/batch2_n1_on_top"]
    wanted = first["hparams"]
    settings = {"threshold": wanted["nullspace_threshold"], "ridge": wanted["L2"]}
    editor = make(AlphaEdit, golden, model, first, "alphaedit", **settings)
    edit = check(golden, model, first, editor)
    check(golden, model, second, editor, EditSequence([edit]))
    # What the second batch must know is in the first edit's file, not in the editor.
    from lightning_edit.edits import load_edit

    again = make(AlphaEdit, golden, model, first, "alphaedit", **settings)
    check(golden, model, second, again, EditSequence([load_edit(edit.save(tmp_path / "first"))]))
