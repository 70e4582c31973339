"""The surrogate against plain autograd through the edited forward pass, in float64."""

import pytest
import torch

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.editors import MEND
from lightning_edit.edits import StackedFactors
from lightning_edit.functional.surrogate import cut, surrogate_loss
from lightning_edit.models import LanguageModel
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.hypernetwork import outer_losses
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer

REQUESTS = [("The capital of France is", "Rome"), ("What is the capital of Germany? It is", "Paris the city")]
REPHRASES = [("Paris is no longer it:", "Rome"), ("Germany has the capital", "Paris the city")]
LOCALITY = [("The capital of Italy is", "Rome"), ("On which continent is Brazil?", "South America")]


@pytest.mark.parametrize("requests_per_edit", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_equals_autograd_through_the_edited_weights(family, requests_per_edit):
    model = LanguageModel(build(FAMILIES[family][0](), torch.float64), byte_level_tokenizer())
    torch.manual_seed(1)
    editor = MEND(sites=[1, 2], rank=6, step_size=1e-2)
    editor.setup(model)
    editor.double().train()
    with torch.no_grad():
        for parameter in editor.networks.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = training_batch(model, requests_per_edit)

    trunk = Trunk(model, 1)
    factors = editor.factors(model, batch.edit, batch.names, trunk)
    stacked = editor.stack(factors, batch.edit_of_request, batch.edits)
    editor.eval()  # the statistics are what they are; the second pass must not count the tokens again
    tensors = [tensor for own in stacked.values() for tensor in (own.a, own.b)]
    leaves = cut(tensors)
    edited = {name: StackedFactors(leaves[2 * i], leaves[2 * i + 1]) for i, name in enumerate(stacked)}
    edit_losses, locality_losses = outer_losses(model, batch, edited, trunk)
    loss = 0.1 * edit_losses.mean() + locality_losses.mean()
    surrogate_loss(loss, tensors, torch.autograd.grad(loss, leaves)).backward()
    ours = {name: parameter.grad.clone() for name, parameter in editor.named_parameters()}

    editor.zero_grad()
    expected = plain_loss(model, editor, batch)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for name, parameter in editor.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-9 * scale)


def training_batch(model, requests_per_edit):
    def encode(pairs):
        return [model.encoder.encode(*pair) for pair in pairs]

    edit_of = [index // requests_per_edit for index in range(2)]
    return TrainingBatch(
        names=["first", "second"],
        edit=model.encoder.collate(encode(REQUESTS)),
        edit_of_request=torch.tensor(edit_of),
        outer=model.encoder.collate(encode(REPHRASES + LOCALITY)),
        edit_of_outer=torch.tensor(edit_of * 2),
        rephrases=2,
        edits=edit_of[-1] + 1,
    )


def plain_loss(model, editor, batch):
    """The same loss, one text at a time, with whole weights edited by functional_call and full logits."""
    stacked = editor.stack(editor.factors(model, batch.edit, batch.names), batch.edit_of_request, batch.edits)

    def logits(ids, edit):
        weights = {}
        for name, own in stacked.items():
            site = model.layer_map.named_site(name)
            weights[f"{name}.weight"] = site.weight + site.oriented(own.a[edit] @ own.b[edit])
        return torch.func.functional_call(model.model, weights, (ids,)).logits[0].log_softmax(-1)

    edit_losses, locality_losses = [], []
    for row, pair in enumerate(REPHRASES + LOCALITY):
        text = model.encoder.encode(*pair)
        ids, at = torch.tensor([text.ids]), torch.arange(*text.target) - 1
        after = logits(ids, int(batch.edit_of_outer[row]))[at]
        if row < 2:
            edit_losses.append(-after[torch.arange(len(at)), torch.tensor(text.target_ids)].mean())
        else:
            before = model.model(ids).logits[0, at].log_softmax(-1)
            locality_losses.append((before.exp() * (before - after)).sum(-1).mean())
    return 0.1 * torch.stack(edit_losses).mean() + torch.stack(locality_losses).mean()
