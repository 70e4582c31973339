import pytest
import torch

from lightning_edit.functional.divergence import kl_divergence
from lightning_edit.models.head import losses_and_divergences, search_losses, token_losses
from tests.tiny_models import FAMILIES, language_model

TEXTS = [("The capital of France is", "Rome"), ("What is the capital of Germany? It is", "Paris the city")]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_head_alone_gives_the_logits_of_a_whole_pass(family):
    model = language_model(family)
    batch = model.encoder.collate([model.encoder.encode(*text) for text in TEXTS])
    logits, inputs = model.head_logits(batch, batch.answer_mask)
    assert torch.equal(model.head_inputs(batch, batch.answer_mask), inputs)
    torch.testing.assert_close(model.logits_of(inputs), logits, rtol=1e-5, atol=1e-6)
    assert not any("forward" in vars(block) for block in model.layer_map.blocks)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_losses_and_divergences_in_one_product_equal_those_of_two(monkeypatch, limit):
    model = language_model("gemma2")  # with soft-capped logits
    monkeypatch.setattr(type(model), "logits_at_once", limit)
    size, vocabulary = model.model.get_output_embeddings().weight.shape[::-1]
    generator = torch.Generator().manual_seed(0)
    inputs, kept, before = (torch.randn(n, size, generator=generator) for n in (4, 3, 3))
    ids = torch.randint(vocabulary, (4,), generator=generator)
    leaves = [inputs.requires_grad_(), kept.requires_grad_()]
    losses, divergences = losses_and_divergences(model, inputs, ids, kept, before)
    expected = torch.nn.functional.cross_entropy(model.logits_of(inputs), ids, reduction="none")
    other = kl_divergence(model.logits_of(before), model.logits_of(kept))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(token_losses(model, inputs, ids), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(divergences, other, rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(2 * losses.sum() + divergences.sum(), leaves)
    for one, same in zip(gradients, torch.autograd.grad(2 * expected.sum() + other.sum(), leaves), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_search_losses_in_one_product_equal_plain_autograd(monkeypatch, limit):
    model = language_model("gemma2")
    monkeypatch.setattr(type(model), "logits_at_once", limit)
    size, vocabulary = model.model.get_output_embeddings().weight.shape[::-1]
    generator = torch.Generator().manual_seed(0)
    inputs, kept, earlier = (torch.randn(n, size, generator=generator) for n in (4, 3, 3))
    ids = torch.randint(vocabulary, (4,), generator=generator)
    first = search_losses(model, inputs, ids, earlier, None)
    torch.testing.assert_close(first.kept_logits, model.logits_of(earlier))
    assert float(first.divergences.abs().max()) == 0
    leaves = [inputs.requires_grad_(), kept.requires_grad_()]
    result = search_losses(model, inputs, ids, kept, first.kept_logits)
    logits = model.logits_of(inputs)
    assert torch.equal(result.predicted, logits.argmax(-1))
    expected = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    other = kl_divergence(model.logits_of(kept), first.kept_logits)
    torch.testing.assert_close(result.nll, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.divergences, other, rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(2 * result.nll.sum() + result.divergences.sum(), leaves)
    for one, same in zip(gradients, torch.autograd.grad(2 * expected.sum() + other.sum(), leaves), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6)
