import torch

from lightning_edit.editors import GradientStep
from tests.testers import REQUESTS, EditorTester
from tests.tiny_models import language_model


class TestGradientStep(EditorTester):
    def make(self, model):
        return GradientStep(sites=[1, 2], step_size=0.01)


def test_is_one_step_of_autograd():
    model = language_model("gpt2")
    edit = GradientStep(sites=[1], step_size=0.5).edit(model, REQUESTS[:1])
    [(name, delta)] = edit.deltas.items()
    weight = model.layer_map.named_site(name).weight.requires_grad_()
    text = model.encoder.encode(REQUESTS[0].prompt, REQUESTS[0].target)
    labels = torch.tensor([[-100] * text.target[0] + list(text.target_ids)])
    model.model(input_ids=torch.tensor([text.ids]), labels=labels).loss.backward()
    torch.testing.assert_close(delta.dense(), -0.5 * weight.grad, rtol=1e-4, atol=1e-6)
