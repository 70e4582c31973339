"""Statistics on text that the model samples: enough for an edit, kept for the next one."""

import pytest
import torch

from lightning_edit.editors import ROME, ContextSettings, ValueSettings
from lightning_edit.errors import BaseModelMismatchError, ConfigurationError
from lightning_edit.models import sampled_statistics as module
from lightning_edit.models.sampled_statistics import sample_texts, sampled_statistics
from tests.testers import REQUESTS, assert_untouched, log_prob, state
from tests.tiny_models import language_model


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path / "cache"))


def test_texts_follow_the_models_distribution_and_the_seed():
    model = language_model("llama")
    torch.manual_seed(5)
    random_state = torch.random.get_rng_state()
    texts = sample_texts(model, 6, 20, seed=1)
    assert texts.shape == (6, 20)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(sample_texts(model, 6, 20, seed=1), texts)
    assert not torch.equal(sample_texts(model, 6, 20, seed=2), texts)
    # The second token of many texts with one start against the model's own probabilities.
    starts = torch.full((4000, 1), 40)
    with torch.no_grad():
        expected = model.model(starts[:1]).logits[0, -1].softmax(-1)
    torch.manual_seed(0)
    drawn = torch.bincount(model.sample(starts, 2)[:, 1], minlength=len(expected)) / len(starts)
    assert float((drawn - expected).abs().max()) < 0.02


def test_the_moments_are_those_of_the_sampled_texts():
    model = language_model("llama")
    statistics = sampled_statistics(model, [1], tokens=512, seed=3)
    texts, site, seen = sample_texts(model, 8, 64, seed=3), model.layer_map.site(1), []
    handle = site.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    with torch.no_grad():
        for text in texts.split(1):
            model.model(text)
    handle.remove()
    keys = torch.cat(seen).flatten(0, 1)
    torch.testing.assert_close(statistics.moment(site.name).double(), keys.T @ keys / len(keys), rtol=1e-4, atol=1e-5)
    assert statistics.corpus.name == "sampled by the model itself (seed 3)"


def test_they_are_collected_once_and_layers_are_added(monkeypatch):
    model, sampled = language_model("llama"), []
    sample = module.sample_texts
    monkeypatch.setattr(module, "sample_texts", lambda *a: sampled.append(1) or sample(*a))
    first = sampled_statistics(model, [1], tokens=512)
    assert torch.equal(sampled_statistics(model, [1], tokens=512).moments[model.layer_map.site(1).name],
                       first.moments[model.layer_map.site(1).name])  # fmt: skip
    assert len(sampled) == 1
    both = sampled_statistics(model, [0, 1], tokens=512)
    assert len(sampled) == 2
    assert len(both.moments) == 2
    with pytest.raises(BaseModelMismatchError):
        both.check(language_model("gpt2"))


def test_rome_uses_sampled_statistics_without_fitted_ones(tmp_path):
    model = language_model("llama")
    before = state(model)
    editor = ROME(
        layers=[1],
        statistics=str(tmp_path / "none"),
        search=ValueSettings(steps=10),
        contexts=ContextSettings([["{}"]]),
    )
    editor.setup(model)
    editor.fit_without_corpus(model)
    edit = editor.edit(model, REQUESTS[:1])
    with edit.applied(model) as edited:
        after = log_prob(edited, REQUESTS[0])
    assert after > log_prob(model, REQUESTS[0]) + 0.5
    assert edit.provenance.findings["corpus"]["name"].startswith("sampled by the model itself")
    assert_untouched(model, before)
    with pytest.raises(ConfigurationError, match="fit_without_corpus"):
        ROME(layers=[1], contexts=ContextSettings([["{}"]])).edit(model, REQUESTS[:1])
