import pytest
import torch

from lightning_edit.editors import MALMEN, malmen
from lightning_edit.edits import DenseDelta, FactoredDelta
from lightning_edit.errors import ConfigurationError
from lightning_edit.models.capture import GradientFactors
from tests.testers import REQUESTS, EditorTester, log_prob
from tests.tiny_models import language_model


class TestMALMEN(EditorTester):
    settings: dict[str, object] = {}

    def make(self, model):
        editor = MALMEN(sites=[1, 2], rank=8, step_size=0.02, **self.settings)
        editor.setup(model)
        # The statistics of a few requests: MALMEN starts as a gradient step on normalised factors.
        editor.train()
        editor.edit_each(model, REQUESTS)
        return editor.eval()


class TestMALMENPrimal(TestMALMEN):
    """The dense (primal) solution, which real sizes use from hundreds of requests on."""

    settings = {"tokens": "all", "rows_per_chunk": 7, "factors_on_disk": True}

    @pytest.fixture(autouse=True)
    def primal(self, monkeypatch):
        monkeypatch.setattr(malmen, "_Dual", malmen._Primal)


def fitted_editor(model, **settings):
    torch.manual_seed(0)
    editor = MALMEN(sites=[1, 2], rank=4, step_size=0.02, **settings)
    editor.setup(model)
    editor.train()
    editor.edit(model, REQUESTS)
    return editor.eval()


@pytest.mark.parametrize("settings", [{"rows_per_chunk": 2}, {"factors_on_disk": True}])
def test_the_edit_does_not_depend_on_chunks_or_storage(settings):
    model = language_model("llama")
    expected = fitted_editor(model).edit(model, REQUESTS)
    model.tokens_per_batch = 16
    actual = fitted_editor(model, **settings).edit(model, REQUESTS)
    for site, delta in expected.deltas.items():
        torch.testing.assert_close(actual.deltas[site].dense(), delta.dense(), rtol=1e-3, atol=1e-6)


def test_few_keys_give_a_factored_edit_and_many_a_dense_one():
    model = language_model("llama")
    editor = fitted_editor(model, tokens="all")
    few, many = editor.edit(model, REQUESTS[:1]), editor.edit(model, REQUESTS * 8)
    assert {type(delta) for delta in few.deltas.values()} == {FactoredDelta}
    assert {type(delta) for delta in many.deltas.values()} == {DenseDelta}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("form", ["_Primal", "_Dual"])
def test_training_keeps_only_the_factors_of_a_chunk(form, on_disk, monkeypatch):
    """The tensors that a step's graph saves do not grow with the number of requests."""
    monkeypatch.setattr(malmen, "_Primal" if form == "_Dual" else "_Dual", getattr(malmen, form))
    editor = fitted_editor(language_model("llama"), rows_per_chunk=8, factors_on_disk=on_disk)
    sites = list(editor.step_sizes)
    kept = {}
    for rows in (16, 64):
        generator = torch.Generator().manual_seed(0)
        store = editor.new_store(1)
        for site in (site.name for site in map(language_model("llama").layer_map.site, (1, 2))):
            x, delta = (torch.randn(rows, size, generator=generator) for size in (48, 32))
            store.append({site: GradientFactors(x, delta, torch.arange(rows))}, torch.zeros(rows, dtype=torch.int64))
        proposal = editor.propose(store)
        gradients = [torch.randn(leaf.shape, generator=generator) for leaf in proposal.leaves]
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            carrier = proposal.carry(gradients)
        # A few scalars for each chunk, but none of its (8, 32) differences.
        kept[rows] = sum(sizes)
        assert max(sizes, default=0) < 8 * 32
        parameters = [parameter for parameter in editor.parameters() if parameter.requires_grad]
        parameter_gradients = torch.autograd.grad(carrier, parameters, allow_unused=True)
        assert any(bool(gradient.any()) for gradient in parameter_gradients if gradient is not None)
    assert kept[64] - kept[16] <= 4 * len(sites) * (64 - 16) // 8


def test_a_larger_ridge_makes_a_smaller_shift():
    model = language_model("llama")
    editor = fitted_editor(model)
    small = editor.edit(model, REQUESTS).deltas
    with torch.no_grad():
        for value in editor.log_ridges.values():
            value.add_(3.0)
    large = editor.edit(model, REQUESTS).deltas
    assert all(large[site].dense().norm() < small[site].dense().norm() for site in small)


def test_joint_edits_reach_every_request():
    model = language_model("llama")
    edit = fitted_editor(model).edit(model, REQUESTS)
    before = [log_prob(model, request) for request in REQUESTS]
    with edit.applied(model) as edited:
        assert all(log_prob(edited, request) > value for request, value in zip(REQUESTS, before, strict=True))


def test_unknown_tokens_are_refused():
    with pytest.raises(ConfigurationError, match="'all', 'answer'"):
        MALMEN(tokens="last")
