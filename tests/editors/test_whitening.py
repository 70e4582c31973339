"""Hypernetworks on whitened keys: what is fitted, when, and what stays in the checkpoint."""

import torch

from lightning_edit.editors import MALMEN, MEND
from lightning_edit.editors.whitening import KeyWhitening, answering_key_moments
from lightning_edit.models.trunk import Trunk
from tests.testers import REQUESTS, EditorTester
from tests.tiny_models import language_model

TEXTS = [(f"The capital of country {number} is", f"city {number}") for number in range(24)]


def fitted(editor, model):
    editor.setup(model)
    editor.fit_whitening(model, [model.encoder.encode(*text) for text in TEXTS])
    editor.train()
    editor.edit_each(model, REQUESTS)
    return editor.eval()


class TestWhitenedMEND(EditorTester):
    def make(self, model):
        return fitted(MEND(sites=[1, 2], rank=8, step_size=5e-4, whitening=6), model)


class TestWhitenedMALMEN(EditorTester):
    def make(self, model):
        return fitted(MALMEN(sites=[1, 2], rank=8, step_size=1e-3, whitening=6), model)


def test_transposed_is_the_adjoint():
    whitening = KeyWhitening(10, 3)
    x, z = torch.randn(4, 10), torch.randn(4, 10)
    torch.testing.assert_close(whitening(x), x)
    keys = torch.randn(50, 10) @ torch.randn(10, 10)
    whitening.fit(keys.T @ keys / 50)
    assert not torch.allclose(whitening(x), x)
    torch.testing.assert_close((z * whitening(x)).sum(1), (whitening.transposed(z) * x).sum(1))


def test_moments_are_those_of_the_answering_positions():
    model = language_model("llama")
    sites, texts = model.layer_map.sites([1, 2]), [model.encoder.encode(*text) for text in TEXTS]
    seen = {site.name: [] for site in sites}
    for text in texts:
        handles = [
            site.module.register_forward_hook(lambda module, args, output, name=site.name: seen[name].append(args[0]))
            for site in sites
        ]
        with torch.no_grad():
            model.model(torch.tensor([text.ids]))
        for handle in handles:
            handle.remove()
    for passes in (None, Trunk(model, 1)):
        moments = answering_key_moments(model, texts, sites, passes)
        for name, values in seen.items():
            answering = [
                value[0, text.target[0] - 1 : text.target[1] - 1] for value, text in zip(values, texts, strict=True)
            ]
            keys = torch.cat(answering).double()
            expected = (keys.T @ keys / len(keys)).float()
            torch.testing.assert_close(moments[name], expected, rtol=1e-4, atol=1e-6)


def test_whitening_reduces_how_far_an_edit_reaches_similar_prompts():
    """Keys share a large common part; the whitened update follows the remainder."""
    common, specific = 5 * torch.randn(1, 32), torch.randn(40, 32)
    keys = common + specific
    whitening = KeyWhitening(32, 4)
    whitening.fit(keys.T @ keys / len(keys))
    edited, other = keys[:20], keys[20:]

    def reach(direction):
        return float(((other * direction).sum(1) / (edited * direction).sum(1)).abs().mean())

    assert reach(whitening.transposed(whitening(edited))) < 0.5 * reach(edited)


def test_an_editor_reports_whether_it_needs_fitting():
    model = language_model("llama")
    plain, whitened = MEND(sites=[1], rank=4), MEND(sites=[1], rank=4, whitening=6)
    for editor in (plain, whitened):
        editor.setup(model)
    assert (plain.needs_whitening, whitened.needs_whitening) == (False, True)
    other = fitted(MEND(sites=[1], rank=4, whitening=6), model)
    whitened.load_state_dict(other.state_dict())
    assert not whitened.needs_whitening
