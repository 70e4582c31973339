import pytest
import torch

from lightning_edit.editors import MALMEN, malmen
from lightning_edit.edits import DenseDelta, FactoredDelta
from lightning_edit.errors import ConfigurationError
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


class TestMALMENInTheOtherForm(TestMALMEN):
    """The dense solution, which real sizes need from hundreds of requests on."""

    settings = {"tokens": "all", "rows_per_chunk": 7, "factors_on_disk": True}

    @pytest.fixture(autouse=True)
    def primal(self, monkeypatch):
        monkeypatch.setattr(malmen, "_Dual", malmen._Primal)


def made(model, **settings):
    torch.manual_seed(0)
    editor = MALMEN(sites=[1, 2], rank=4, step_size=0.02, **settings)
    editor.setup(model)
    editor.train()
    editor.edit(model, REQUESTS)
    return editor.eval()


@pytest.mark.parametrize("settings", [{"rows_per_chunk": 2}, {"factors_on_disk": True}])
def test_the_edit_does_not_depend_on_chunks_or_storage(settings):
    model = language_model("llama")
    expected = made(model).edit(model, REQUESTS)
    model.tokens_per_batch = 16
    found = made(model, **settings).edit(model, REQUESTS)
    for site, delta in expected.deltas.items():
        torch.testing.assert_close(found.deltas[site].dense(), delta.dense(), rtol=1e-3, atol=1e-6)


def test_few_keys_give_a_factored_edit_and_many_a_dense_one():
    model = language_model("llama")
    editor = made(model, tokens="all")
    few, many = editor.edit(model, REQUESTS[:1]), editor.edit(model, REQUESTS * 8)
    assert {type(delta) for delta in few.deltas.values()} == {FactoredDelta}
    assert {type(delta) for delta in many.deltas.values()} == {DenseDelta}


def test_a_larger_ridge_makes_a_smaller_shift():
    model = language_model("llama")
    editor = made(model)
    small = editor.edit(model, REQUESTS).deltas
    with torch.no_grad():
        for value in editor.log_ridges.values():
            value.add_(3.0)
    large = editor.edit(model, REQUESTS).deltas
    assert all(large[site].dense().norm() < small[site].dense().norm() for site in small)


def test_joint_edits_reach_every_request():
    model = language_model("llama")
    edit = made(model).edit(model, REQUESTS)
    before = [log_prob(model, request) for request in REQUESTS]
    with edit.applied(model) as edited:
        assert all(log_prob(edited, request) > value for request, value in zip(REQUESTS, before, strict=True))


def test_only_known_tokens():
    with pytest.raises(ConfigurationError, match="'all', 'answer'"):
        MALMEN(tokens="last")
