"""The search for a value against plain loops with the whole model."""

import pytest
import torch

from lightning_edit.editors.prompts import every_context, last_subject_token
from lightning_edit.editors.value_search import ValueSettings, search_values
from lightning_edit.models import LanguageModel
from lightning_edit.models.record import Tap
from tests.testers import REQUESTS
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_search_takes_the_gradient_of_the_whole_model(family):
    """One step of Adam from zero is lr · sign(gradient), so compare the change after two steps with plain autograd."""
    base = build(FAMILIES[family][0](), torch.float64)
    model = LanguageModel(base, byte_level_tokenizer(), name=family)
    site = model.layer_map.site(1)
    tap = Tap(model.layer_map.block(1), "output", 1)
    settings = ValueSettings(3, 0.05, 0.02, 4.0, 0.5)
    templates = ["{}", "Well. {}"]
    found = search_values(model, REQUESTS[:2], templates, {"value": tap}, settings)
    for request, own in zip(REQUESTS[:2], found, strict=True):
        delta, losses = plain_search(model, tap.module, request, templates, settings, site.fan_out)
        # Adam's first step is the gradient's sign, and some families normalise in float32 whatever their precision.
        same = torch.isclose(own.delta["value"], delta, rtol=1e-4, atol=1e-7)
        assert int((~same).sum()) <= 2
        assert own.losses == pytest.approx(losses, rel=1e-6)


def plain_search(model, module, request, templates, settings, size):
    """Text by text, full logits, no batch, no padding, no cache."""
    delta = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    texts = every_context(model, [request], templates, with_targets=True)
    essence = model.encoder.encode(f"{request.subject} is a", "", (0, len(request.subject)))
    seen = []

    def logits(text):
        def add(_, __, output):
            own = output[0] if isinstance(output, tuple) else output
            seen.append(own[0, last_subject_token(text)].detach())
            mask = torch.zeros(own.shape[1], 1, dtype=own.dtype)
            mask[last_subject_token(text)] = 1
            shifted = own + mask * delta
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        handle = module.register_forward_hook(add)
        try:
            return model.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    reference, losses, initial = None, [], None
    for step in range(settings.steps):
        nll = []
        for text in texts:
            at = torch.arange(*text.target)
            nll.append(-logits(text)[at - 1, torch.tensor(text.target_ids)].mean())
            initial = seen[0]
        now = logits(essence)[last_subject_token(essence)]
        reference = now.detach() if reference is None else reference
        divergence = (now.exp() * (now - reference)).sum()
        decay = settings.weight_decay * delta.norm() / initial.norm() ** 2
        loss = sum(nll) / len(nll) + settings.kl_weight * divergence + decay
        losses.append(float(loss.detach()))
        if step == settings.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return delta.detach(), losses


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_target_is_read_from_the_loss_layer_and_the_divergence_from_the_last(family):
    base = build(FAMILIES[family][0](), torch.float64)
    model = LanguageModel(base, byte_level_tokenizer(), name=family)
    norm = base.model.norm if family == "llama" else base.transformer.ln_f
    request, module = REQUESTS[0], model.layer_map.block(0)
    text = model.encoder.encode(request.prompt, request.target, request.subject_span)
    essence = model.encoder.encode(f"{request.subject} is a", "", (0, len(request.subject)))
    settings = ValueSettings(2, 0.05, 0.0, 100.0, 0.7, loss_layer=1)
    [own] = search_values(model, [request], ["{}"], {"value": Tap(module, "output", 0)}, settings)

    def states(text, delta):
        def add(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            hidden[0, last_subject_token(text)] += delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = module.register_forward_hook(add)
        try:
            return base(torch.tensor([text.ids]), output_hidden_states=True)
        finally:
            handle.remove()

    def loss(delta):
        early = base.lm_head(norm(states(text, delta).hidden_states[2][0])).log_softmax(-1)
        at = torch.arange(*text.target)
        nll = -early[at - 1, torch.tensor(text.target_ids)].mean()
        p, q = (states(essence, value).logits[0, last_subject_token(essence)].log_softmax(-1) for value in (0.0, delta))
        return nll + 0.7 * (p.exp() * (p - q)).sum()

    with torch.no_grad():
        assert own.losses == pytest.approx([float(loss(0.0)), float(loss(own.delta["value"]))], rel=1e-6)


def test_searching_together_is_searching_alone():
    model = language_model("llama")
    tap = {"value": Tap(model.layer_map.block(1), "output", 1)}
    settings = ValueSettings(6, 0.3, 1e-3, 4.0, 0.1, stop_below=5.0)
    together = search_values(model, REQUESTS, ["{}", "Well. {}"], tap, settings)
    model.tokens_per_batch = 64
    alone = [search_values(model, [request], ["{}", "Well. {}"], tap, settings)[0] for request in REQUESTS]
    for one, other in zip(together, alone, strict=True):
        assert len(one.losses) == len(other.losses)
        torch.testing.assert_close(one.delta["value"], other.delta["value"], rtol=1e-3, atol=1e-4)
