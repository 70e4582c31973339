import pytest
import torch

from lightning_edit.editors import MEND
from lightning_edit.editors.factors import FactorChunk
from lightning_edit.errors import EditError, EditorNotFittedError
from tests.testers import REQUESTS, EditorTester
from tests.tiny_models import language_model


class TestMEND(EditorTester):
    def make(self, model):
        editor = MEND(sites=[1, 2], rank=8, step_size=5e-4)
        editor.setup(model)
        # The statistics of a few requests: MEND starts as a gradient step on normalised factors.
        editor.train()
        editor.edit_each(model, REQUESTS)
        return editor.eval()


class TestMENDWithSeparateNetworks(EditorTester):
    def make(self, model):
        editor = MEND(sites=[1, 2], rank=4, step_size=5e-4, shared=False)
        editor.setup(model)
        assert len(editor.networks) == 2
        editor.train()
        editor.edit_each(model, REQUESTS)
        return editor.eval()


def chunk(x, delta):
    return FactorChunk(x, delta, torch.zeros(len(x), dtype=torch.int64))


def test_starts_as_the_identity_on_normalised_factors():
    model = language_model("llama")
    editor = MEND(sites=[1, 2], rank=8)
    editor.setup(model)
    [network] = editor.networks.values()
    x, delta = torch.randn(5, 48), torch.randn(5, 32)
    network.update_statistics([chunk(x, delta)])
    pseudo_x, pseudo_delta = network(x, delta, torch.tensor([0, 1, 0, 1, 0]))
    z = torch.cat([x, delta], 1)
    z = (z - z.mean(0)) / (z.std(0) + 1e-7)
    torch.testing.assert_close(torch.cat([pseudo_x, pseudo_delta], 1), z, rtol=1e-4, atol=1e-5)


def test_editing_in_eval_mode_leaves_the_statistics_alone():
    model = language_model("llama")
    editor = TestMEND().make(model)
    before = {name: value.clone() for name, value in editor.state_dict().items()}
    editor.edit_each(model, REQUESTS)
    assert all(torch.equal(value, before[name]) for name, value in editor.state_dict().items())


def test_one_token_does_not_spoil_the_statistics():
    editor = MEND(sites=[1], rank=4)
    editor.setup(language_model("llama"))
    [network] = editor.networks.values()
    x, delta = torch.randn(9, 48), torch.randn(9, 32)
    network.update_statistics([chunk(x[:1], delta[:1])])
    assert network(x, delta, torch.zeros(9, dtype=torch.int64))[0].isfinite().all()
    network.update_statistics([chunk(x[1:3], delta[1:3]), chunk(x[3:], delta[3:])])
    expected = torch.cat([x, delta], 1)
    torch.testing.assert_close(network.statistics.mean.float(), expected.mean(0), rtol=1e-5, atol=1e-6)


def test_the_statistics_are_in_the_checkpoint():
    editor = TestMEND().make(language_model("llama"))
    names = [name for name in editor.state_dict() if "statistics" in name]
    assert {name.rsplit(".", 1)[1] for name in names} == {"count", "mean", "square"}


def test_is_float32_on_a_bfloat16_base():
    editor = TestMEND().make(language_model("llama", torch.bfloat16))
    assert {parameter.dtype for parameter in editor.parameters()} == {torch.float32}


def test_refuses_to_edit_before_setup():
    with pytest.raises(EditorNotFittedError, match=r"setup\(model\)"):
        MEND(sites=[1]).edit(language_model("llama"), REQUESTS[:1])


def test_a_gradient_that_is_not_finite_names_request_and_site():
    model = language_model("llama")
    editor = TestMEND().make(model)
    model.model.model.layers[2].mlp.gate_proj.weight.fill_(float("inf"))
    with pytest.raises(EditError, match="could not be made: the target's loss of 'france'"):
        editor.edit(model, REQUESTS[:1])
