"""The search for a value against plain loops with the whole model."""

import pytest
import torch

from lightning_edit.editors import MEMIT, PMET, ROME, ContextSettings
from lightning_edit.editors.prompts import every_context, last_subject_token
from lightning_edit.editors.value_search import ValueSettings, _Search, search_values
from lightning_edit.errors import ConfigurationError, LayerMapError
from lightning_edit.models import LanguageModel
from lightning_edit.models.recording import Tap
from tests.testers import REQUESTS, log_prob
from tests.tiny_models import FAMILIES, SHARED, build, byte_level_tokenizer, language_model


def block_output(maps):
    """Where MEMIT and its relatives search."""
    return {"value": Tap(maps.block(1), "output", 1)}


def projection_output(maps):
    """Where ROME searches."""
    return {"value": Tap(maps.site(1).module, "output", 1)}


def both_outputs(maps):
    """Where PMET searches."""
    return {"mlp": Tap(maps.site(1).module, "output", 1), "attention": Tap(maps.attention_site(1).module, "output", 1)}


@pytest.mark.parametrize("places", [block_output, projection_output, both_outputs])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_search_takes_the_gradient_of_the_whole_model(family, places):
    """One step of Adam from zero is lr · sign(gradient), so compare the change after two steps with plain autograd."""
    base = build(FAMILIES[family][0](), torch.float64)
    assert_equals_plain_search(LanguageModel(base, byte_level_tokenizer(), name=family), places)


@pytest.mark.parametrize("family", SHARED)
def test_models_that_share_keys_and_values_are_searched_with_whole_texts_and_a_warning(family):
    base = build(SHARED[family](), torch.float64)
    model = LanguageModel(base, byte_level_tokenizer(), name=family, site="model.layers.{}.mlp.down_proj")
    with pytest.warns(UserWarning, match=rf"cannot be reused in {family} .* whole texts are run"):
        assert_equals_plain_search(model, projection_output)


def test_several_states_for_each_position_are_refused():
    base = build(SHARED["gemma3n"]())
    model = LanguageModel(base, byte_level_tokenizer(), site="model.layers.{}.mlp.down_proj")
    editor = MEMIT(layers=[1], covariance="identity", contexts=ContextSettings([["{}"]]), search=ValueSettings(steps=2))
    with (
        pytest.warns(UserWarning, match="cannot be reused"),
        pytest.raises(LayerMapError, match=r"not one state for each position; .* such as ROME"),
    ):
        editor.edit(model, REQUESTS[:1])


def assert_equals_plain_search(model, places):
    taps = places(model.layer_map)
    settings = ValueSettings(3, 0.05, 0.02, 4.0, 0.5)
    templates = ["{}", "Well. {}"]
    results = search_values(model, REQUESTS[:2], templates, taps, settings)
    for request, result in zip(REQUESTS[:2], results, strict=True):
        modules = {place: tap.module for place, tap in taps.items()}
        deltas, losses = plain_search(model, modules, request, templates, settings, model.layer_map.site(1).fan_out)
        for place, delta in deltas.items():
            # Adam's first step is the gradient's sign, and some families normalise in float32 whatever their precision.
            same = torch.isclose(result.delta[place], delta, rtol=1e-4, atol=1e-7)
            assert int((~same).sum()) <= 2
        assert result.losses == pytest.approx(losses, rel=1e-6)


def plain_search(model, modules, request, templates, settings, size):
    """Text by text, full logits, no batch, no padding, no cache."""
    deltas = {place: torch.zeros(size, dtype=torch.float64, requires_grad=True) for place in modules}
    optimizer = torch.optim.Adam(list(deltas.values()), lr=settings.learning_rate)
    texts = every_context(model, [request], templates, with_targets=True)
    essence = model.encoder.encode(f"{request.subject} is a", "", (0, len(request.subject)))
    initial = {}

    def logits(text):
        def adding(place):
            def add(_, __, output):
                hidden = output[0] if isinstance(output, tuple) else output
                rows = hidden.view(-1, size)  # some families flatten texts and positions
                # A copy: some add the attention's output to it in place.
                initial.setdefault(place, rows[last_subject_token(text)].detach().clone())
                mask = torch.zeros(len(rows), 1, dtype=hidden.dtype)
                mask[last_subject_token(text)] = 1
                shifted = (rows + mask * deltas[place]).view(hidden.shape)
                return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

            return add

        handles = [module.register_forward_hook(adding(place)) for place, module in modules.items()]
        try:
            return model.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()

    reference, losses = None, []
    for step in range(settings.steps):
        nll = []
        for text in texts:
            positions = torch.arange(*text.target)
            nll.append(-logits(text)[positions - 1, torch.tensor(text.target_ids)].mean())
        now = logits(essence)[last_subject_token(essence)]
        reference = now.detach() if reference is None else reference
        divergence = (now.exp() * (now - reference)).sum()
        decay = settings.weight_decay * sum(
            delta.norm() / initial[place].norm() ** 2 for place, delta in deltas.items()
        )
        loss = sum(nll) / len(nll) + settings.kl_weight * divergence + decay
        losses.append(float(loss.detach()))
        if step == settings.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {place: delta.detach() for place, delta in deltas.items()}, losses


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_target_is_read_from_the_loss_layer_and_the_divergence_from_the_last(family):
    base = build(FAMILIES[family][0](), torch.float64)
    model = LanguageModel(base, byte_level_tokenizer(), name=family)
    norm = base.model.norm if family == "llama" else base.transformer.ln_f
    request, module = REQUESTS[0], model.layer_map.block(0)
    text = model.encoder.encode(request.prompt, request.target, request.subject_span)
    essence = model.encoder.encode(f"{request.subject} is a", "", (0, len(request.subject)))
    settings = ValueSettings(2, 0.05, 0.0, 100.0, 0.7, loss_layer=1)
    [result] = search_values(model, [request], ["{}"], {"value": Tap(module, "output", 0)}, settings)

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
        positions = torch.arange(*text.target)
        nll = -early[positions - 1, torch.tensor(text.target_ids)].mean()
        p, q = (states(essence, value).logits[0, last_subject_token(essence)].log_softmax(-1) for value in (0.0, delta))
        return nll + 0.7 * (p.exp() * (p - q)).sum()

    with torch.no_grad():
        assert result.losses == pytest.approx([float(loss(0.0)), float(loss(result.delta["value"]))], rel=1e-6)


def test_a_joint_search_equals_separate_searches():
    model = language_model("llama")
    tap = {"value": Tap(model.layer_map.block(1), "output", 1)}
    settings = ValueSettings(6, 0.3, 1e-3, 4.0, 0.1, stop_below=5.0)
    together = search_values(model, REQUESTS, ["{}", "Well. {}"], tap, settings)
    model.tokens_per_batch = 64
    alone = [search_values(model, [request], ["{}", "Well. {}"], tap, settings)[0] for request in REQUESTS]
    for one, other in zip(together, alone, strict=True):
        assert len(one.losses) == len(other.losses)
        torch.testing.assert_close(one.delta["value"], other.delta["value"], rtol=1e-3, atol=1e-4)


def test_quasi_newton_steps_lower_the_loss_more_and_end_with_the_best_change():
    model = LanguageModel(build(FAMILIES["llama"][0](), torch.float64), byte_level_tokenizer())
    taps = projection_output(model.layer_map)
    losses = {}
    for optimizer in ("adam", "lbfgs"):
        settings = ValueSettings(8, 0.5, 1e-3, 4.0, 0.0625, optimizer=optimizer)
        values = search_values(model, REQUESTS[:3], ["{}", "Well. {}"], taps, settings)
        losses[optimizer] = [value.losses for value in values]
    for adam, lbfgs in zip(losses["adam"], losses["lbfgs"], strict=True):
        assert adam[0] == pytest.approx(lbfgs[0], rel=1e-9)
        assert min(lbfgs) < adam[-1]
    # The returned change is that of the best evaluation: its loss, computed by hand, is the lowest one.
    settings = ValueSettings(8, 0.5, 1e-3, 4.0, 0.0625, optimizer="lbfgs")
    [value] = search_values(model, REQUESTS[:1], ["{}", "Well. {}"], taps, settings)
    assert float(value.delta["value"].norm()) <= 4.0 * float(value.initial["value"].norm()) * (1 + 1e-9)
    expected = plain_loss_at(model, taps["value"].module, REQUESTS[0], ["{}", "Well. {}"], settings, value)
    assert expected == pytest.approx(min(value.losses), rel=1e-6)


def plain_loss_at(model, module, request, templates, settings, value):
    """The loss of a change, text by text."""
    texts = every_context(model, [request], templates, with_targets=True)
    essence = model.encoder.encode(f"{request.subject} is a", "", (0, len(request.subject)))

    def logits(text, delta):
        def add(_, __, output):
            mask = torch.zeros(output.shape[1], 1, dtype=output.dtype)
            mask[last_subject_token(text)] = 1
            return output + mask * delta

        handle = module.register_forward_hook(add)
        try:
            with torch.no_grad():
                return model.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    delta = value.delta["value"]
    nll = []
    for text in texts:
        places = torch.arange(*text.target)
        nll.append(-logits(text, delta)[places - 1, torch.tensor(text.target_ids)].mean())
    now, before = (logits(essence, change)[last_subject_token(essence)] for change in (delta, torch.zeros_like(delta)))
    divergence = (now.exp() * (now - before)).sum()
    decay = settings.weight_decay * delta.norm() / value.initial["value"].norm() ** 2
    return float(sum(nll) / len(nll) + settings.kl_weight * divergence + decay)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_edits_with_either_optimizer_make_the_target_more_probable(optimizer):
    model = language_model("llama")
    editor = ROME(
        layers=[1],
        covariance="identity",
        contexts=ContextSettings([["{}"]]),
        search=ValueSettings(steps=12, optimizer=optimizer),
    )
    edit, before = editor.edit(model, REQUESTS[:1]), log_prob(model, REQUESTS[0])
    with edit.applied(model) as edited:
        assert log_prob(edited, REQUESTS[0]) > before + 0.5
    assert edit.provenance.settings["search"]["optimizer"] == optimizer


def test_pmet_is_refused_with_quasi_newton_steps():
    with pytest.raises(ConfigurationError, match=r"editor.search.optimizer: 'lbfgs' .* PMET searches two"):
        PMET(search=ValueSettings(optimizer="lbfgs"))
    with pytest.raises(ConfigurationError, match=r"'lbfgs' needs a loss with constant weights"):
        ValueSettings(optimizer="lbfgs", satisfied_weight=0.1)
    with pytest.raises(ConfigurationError, match=r"editor.search.optimizer: expected one of"):
        ROME(search=ValueSettings(optimizer="newton"))


def test_a_finished_request_leaves_the_batch(monkeypatch):
    model = language_model("llama")
    tap = {"value": Tap(model.layer_map.block(1), "output", 1)}
    templates = ["{}", "Well. {}"]
    first = [
        search_values(model, [request], templates, tap, ValueSettings(1, 0.3, 0.0, 4.0, 0.0))[0].losses[0]
        for request in REQUESTS
    ]
    easiest, hardest = sorted(first)[:2]
    rows_of_step = []
    losses = _Search._losses
    monkeypatch.setattr(
        _Search, "_losses", lambda self, active: rows_of_step.append(len(active)) or losses(self, active)
    )
    results = search_values(
        model, REQUESTS, templates, tap, ValueSettings(3, 1e-6, 0.0, 4.0, 0.0, stop_below=(easiest + hardest) / 2)
    )
    steps = [len(result.losses) for result in results]
    assert steps == [1 if loss == easiest else 3 for loss in first]
    assert rows_of_step == [len(REQUESTS), len(REQUESTS) - 1, len(REQUESTS) - 1]
