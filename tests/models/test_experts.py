"""Single experts of mixtures as edit sites."""

from __future__ import annotations

import pytest
import torch

from lightning_edit.editors import MALMEN, MEMIT, MEND, ROME, ContextSettings, GradientStep
from lightning_edit.errors import EditError, LayerMapError
from lightning_edit.export.adapter import adapter_of
from lightning_edit.models import LanguageModel
from lightning_edit.models.capture import capture_factors
from lightning_edit.models.layer_map import LayerMap
from lightning_edit.models.recording import Tap, record_all
from tests.editors.locating import SEARCH, ready, statistics_of
from tests.testers import REQUESTS, EditorTester, log_prob
from tests.tiny_models import MIXTURES, build, byte_level_tokenizer


def _model(family: str, expert: int = 1, **changes: int) -> LanguageModel:
    make, experts = MIXTURES[family]
    config = make()
    for name, value in changes.items():
        setattr(config, name, value)
    site = f"model.layers.{{}}.{experts}.down_proj.{expert}"
    return LanguageModel(build(config), byte_level_tokenizer(), name=f"tiny-{family}", site=site)


def _ids(rows: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(3, 500, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_slice_changes_neither_answers_nor_identity(family):
    model = _model(family)
    before, identity = model.model(_ids()).logits, model.fingerprint
    names = [name for name, _ in model.model.named_parameters()]
    site = model.layer_map.site(1)
    assert (site.layer, site.fan_out, site.reads_all_tokens) == (1, 32, False)
    torch.testing.assert_close(model.model(_ids()).logits, before, rtol=1e-5, atol=1e-5)
    model.weights_changed()
    assert model.fingerprint == identity
    assert [name for name, _ in model.model.named_parameters()] == names


@pytest.mark.parametrize("family", MIXTURES)
def test_the_weight_is_a_view_of_the_mixtures(family):
    model = _model(family)
    site = model.layer_map.site(1)
    experts = model.model.get_submodule(site.name.rpartition(".down_proj")[0])
    with torch.no_grad():
        site.weight.add_(1.0)
    other = build(MIXTURES[family][0]()).get_submodule(site.name.rpartition(".down_proj")[0])
    changed = (experts.down_proj - other.down_proj).flatten(1).mean(1)
    torch.testing.assert_close(changed, torch.tensor([0.0, 1.0, 0.0, 0.0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_gradient_factors_are_those_of_autograd(family):
    model = _model(family)
    site = model.layer_map.site(1)
    texts = [model.encoder.encode(request.prompt, request.target) for request in REQUESTS]
    batch = model.encoder.collate(texts, padding_side="right")
    factors, losses = capture_factors(model, batch, [site])
    experts = model.model.get_submodule(site.name.rpartition(".down_proj")[0])
    experts.down_proj.requires_grad_()
    total = torch.zeros(())
    for text in texts:
        labels = torch.tensor([[-100] * text.target[0] + list(text.target_ids)])
        total = total + model.model(input_ids=torch.tensor([text.ids]), labels=labels).loss
    total.backward()
    torch.testing.assert_close(losses.sum(), total.detach(), rtol=1e-4, atol=1e-5)
    gradient = experts.down_proj.grad[1]
    expected = gradient if gradient.shape[0] == site.fan_in else gradient.T
    assert expected.norm() > 1e-6
    torch.testing.assert_close(factors[site.name].x.T @ factors[site.name].delta, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", MIXTURES)
def test_an_applied_edit_is_a_merged_one(family):
    model = _model(family)
    edit = GradientStep(sites=[0, 1, 2], step_size=0.05).edit(model, REQUESTS[:1])
    unedited = log_prob(model, REQUESTS[0])
    with edit.applied(model) as edited:
        applied = [log_prob(edited, request) for request in REQUESTS]
    assert applied[0] > unedited + 0.001
    edit.merge(model)
    torch.testing.assert_close([log_prob(model, request) for request in REQUESTS], applied, rtol=1e-3, atol=1e-3)


class TestROMEOnAnExpert(EditorTester):
    """Two of two experts for each token, so that every subject is read by the edited one."""

    @pytest.fixture(params=("mixtral", "gpt_oss"))
    def model(self, request):
        return _model(request.param, num_local_experts=2)

    def small_model(self):
        return _model("mixtral", num_local_experts=2)

    def complete(self, editor, model):
        ready(editor, model)

    def make(self, model):
        return ready(ROME(layers=[1], **{**SEARCH, "contexts": ContextSettings([["{}"]])}), model)


def _reads(model: LanguageModel, request) -> bool:
    site = model.layer_map.site(1)
    text = model.encoder.encode(request.prompt.partition(request.subject)[0] + request.subject)
    [keys] = record_all(model, [text], {"key": Tap(site.module, "input", 1)})["key"]
    return bool(keys[-1].any())


@pytest.mark.parametrize("editor", [ROME, MEMIT])
def test_a_subject_that_is_sent_to_other_experts_is_an_error(editor):
    outcomes = set()
    for expert in range(4):
        model = _model("mixtral", expert, num_experts_per_tok=1)
        settings = {**SEARCH, "contexts": ContextSettings([["{}"]])}
        method = editor(layers=[1], **settings)
        method.use_statistics(statistics_of(model, layers=(1,)))
        outcomes.add(_reads(model, REQUESTS[0]))
        if _reads(model, REQUESTS[0]):
            edit = method.edit(model, REQUESTS[:1])
            unedited = log_prob(model, REQUESTS[0])
            with edit.applied(model) as edited:
                assert log_prob(edited, REQUESTS[0]) > unedited
        else:
            with pytest.raises(EditError, match="no edited expert reads the last token of 'France'"):
                method.edit(model, REQUESTS[:1])
    assert outcomes == {True, False}


@pytest.mark.parametrize("network", [MEND, MALMEN])
def test_a_network_changes_nothing_where_no_token_arrives(network):
    effects = set()
    for expert in range(4):
        model = _model("mixtral", expert, num_experts_per_tok=1)
        editor = network(sites=[1], rank=4, step_size=0.05)
        editor.setup(model)
        editor.train()
        editor.edit_each(model, REQUESTS)
        editor.eval()
        unedited = log_prob(model, REQUESTS[0])
        edit = editor.edit(model, REQUESTS[:1])
        text = model.encoder.encode(REQUESTS[0].prompt, REQUESTS[0].target)
        [keys] = record_all(model, [text], {"key": Tap(model.layer_map.site(1).module, "input", 1)})["key"]
        with edit.applied(model) as edited:
            changed = log_prob(edited, REQUESTS[0]) != unedited
        assert keys.any() or not changed
        effects.add(changed)
    assert effects == {True, False}


def test_names_that_do_not_exist_are_errors():
    layers = LayerMap(build(MIXTURES["mixtral"][0]()))
    with pytest.raises(LayerMapError, match=r"expert 4 does not exist: the layer has the experts 0 to 3"):
        layers.named_site("model.layers.1.mlp.experts.down_proj.4")
    with pytest.raises(LayerMapError, match="no module"):
        layers.named_site("model.layers.1.mlp.experts.gate_up_proj.0")
    with pytest.raises(LayerMapError, match=r"experts\.down_proj\.0', 'model.*experts\.down_proj\.3'"):
        layers.site(1)


def test_adapters_cannot_address_an_expert():
    model = _model("mixtral")
    edit = GradientStep(sites=[1], step_size=0.05).edit(model, REQUESTS[:1])
    with pytest.raises(EditError, match="one expert of a mixture"):
        adapter_of(edit, model)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_site_of_a_mixture_is_not_chosen_for_the_user(family):
    make, experts = MIXTURES[family]
    config = make()
    with pytest.raises(LayerMapError, match=f"layer 1 of {config.model_type} is a mixture of experts") as caught:
        LayerMap(build(config)).site(1)
    message = str(caught.value)
    for expert in (0, 3):
        assert f"'model.layers.{{}}.{experts}.down_proj.{expert}'" in message
    assert "q_proj" not in message
