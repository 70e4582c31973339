"""Grouped attention under a mask against that of transformers, and the models that it leaves alone."""

import pytest
import torch
from transformers.integrations import sdpa_attention

from lightning_edit.models.attention import grouped_attention
from tests.tiny_models import FAMILIES, build

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def gradient_of(model):
    """The logits of padded texts, and how their sum of squares changes with the embeddings."""
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, attention_mask=MASK, use_cache=False).logits
    kept = logits[MASK.bool()]
    return kept, torch.autograd.grad(kept.square().sum(), embeddings)[0]


def grouped_family():
    model = build(FAMILIES["llama"][0](), torch.float64)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    return model


def counted_copies(monkeypatch):
    copies, repeat = [], sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *given: copies.append(1) or repeat(*given))
    return copies


def test_the_same_results_without_copies(monkeypatch):
    model, copies = grouped_family(), counted_copies(monkeypatch)
    expected = gradient_of(model)
    assert copies
    copies.clear()
    with grouped_attention(model):
        actual = gradient_of(model)
    assert not copies
    for value, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)


def test_an_error_in_the_context_restores_the_model():
    model, seen = grouped_family(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(model.config._attn_implementation))
    with pytest.raises(ValueError, match="input_ids"), grouped_attention(model):
        model()
    assert len(seen) == 1
    assert seen != ["sdpa"]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("family", "implementation"), [("llama", "eager"), ("falcon", "sdpa")])
def test_models_with_other_attention_are_left_alone(family, implementation):
    """Falcon reads the name of its attention function itself."""
    model = build(FAMILIES[family][0]())
    model.set_attn_implementation(implementation)
    with grouped_attention(model):
        assert model.config._attn_implementation == implementation
