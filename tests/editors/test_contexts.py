"""The contexts of a prompt: what is sampled, from which model, and how much each counts."""

import pytest
import torch

from lightning_edit.editors import MEMIT, ROME, ContextSettings, ValueSettings
from lightning_edit.editors.prompts import STARTED_SAMPLES, sampled_contexts
from lightning_edit.edits import EditSequence, FactoredDelta, WeightEdit
from lightning_edit.models import LanguageModel
from tests.editors.locating import SEARCH, ready
from tests.models.test_language_model import PUBLISHED
from tests.testers import REQUESTS
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model


def test_contexts_are_sampled_from_the_unedited_model():
    model = language_model("llama")
    settings = {**SEARCH, "contexts": ContextSettings(), "search": ValueSettings(steps=2)}

    def fresh():
        return ready(MEMIT(layers=[0, 1], covariance_weight=1e-3, **settings), model)

    first = fresh().edit(model, REQUESTS[:1])
    sampled = first.provenance.findings["contexts"]
    strong = WeightEdit({site: FactoredDelta(100 * d.a, d.b) for site, d in first.deltas.items()}, first.provenance)
    with strong.applied(model):
        assert fresh().contexts_for(model).groups != tuple(map(tuple, sampled)), "the edit changes what is sampled"
    second = fresh().edit(model, REQUESTS[1:2], after=EditSequence([strong]))
    assert second.provenance.findings["contexts"] == sampled
    # One editor may serve several models.
    editor = fresh()
    other = language_model("llama")
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(-1)
    assert editor.contexts_for(model) != editor.contexts_for(other)


@pytest.mark.parametrize(("kind", "groups"), [(ROME, [21]), (MEMIT, [1, 5])])
def test_contexts_are_sampled_from_the_model_by_seed(kind, groups):
    model = language_model("llama")
    settings = {"layers": [1], "search": ValueSettings(steps=2)}
    state_before = torch.random.get_rng_state()
    edit = ready(kind(**settings), model).edit(model, REQUESTS[:1])
    assert torch.equal(torch.random.get_rng_state(), state_before)
    used = edit.provenance.findings["contexts"]
    assert [len(group) for group in used] == groups
    assert used[0][0] == "{}"
    assert all(template.count("{}") == 1 and template.endswith(". {}") for template in used[-1][1:])
    again = ready(kind(**settings), model).edit(model, REQUESTS[:1])
    assert again.provenance.findings["contexts"] == used
    other = ready(kind(**settings, contexts=ContextSettings(seed=1)), model).edit(model, REQUESTS[:1])
    assert other.provenance.findings["contexts"] != used
    listed = ready(kind(**settings, contexts=ContextSettings(used)), model).edit(model, REQUESTS[:1])
    for site, delta in edit.deltas.items():
        torch.testing.assert_close(listed.deltas[site].dense(), delta.dense())


@pytest.mark.parametrize(
    ("kind", "starts", "lengths"),
    [
        (ROME, ["<s>"] * 20, [5] * 10 + [10] * 10),
        (MEMIT, ["The", "Therefore", "Because", "I", "You"], [10] * 5),
    ],
)
def test_what_is_sampled(kind, starts, lengths, monkeypatch):
    """Begun and cut as by the authors, five likeliest tokens at a time."""
    model, asked = language_model("llama"), []

    def generate(starts, lengths, **options):
        asked.append((starts, lengths, options))
        return [" so"] * len(starts)

    monkeypatch.setattr(model, "generate", generate)
    assert ready(kind(layers=[1]), model).contexts_for(model).templates[1].endswith("so. {}")
    assert asked == [(starts, lengths, {"do_sample": True, "top_k": 5})]


@pytest.mark.parametrize("bos", [False, True])
def test_samples_begin_with_one_token_that_begins_a_text(bos, monkeypatch):
    model = LanguageModel(build(FAMILIES["llama"][0]()), byte_level_tokenizer(bos=bos), name="tiny")
    read, generate = [], model.model.generate

    def noting(*, input_ids, **options):
        read.extend(input_ids.tolist())
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model.model, "generate", noting)
    ready(ROME(layers=[1]), model).contexts_for(model)
    assert read == [[model.tokenizer.bos_token_id]] * 20


@pytest.mark.parametrize(("kind", "apart", "groups"), [(ROME, True, [1, 20]), (MEMIT, False, [6])])
def test_the_bare_prompt_weighs_as_much_as_is_asked_for(kind, apart, groups):
    model = language_model("llama")
    usual, other = (
        ready(kind(layers=[1], contexts=ContextSettings(separate_bare_prompt=choice)), model).contexts_for(model)
        for choice in (None, apart)
    )
    assert [len(group) for group in other.groups] == groups
    assert other.templates == usual.templates
    assert float(other.weights[0]) == pytest.approx(1 / 2 if apart else 1 / 6)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: next(iter(published)))
def test_published_generation_settings_do_not_change_what_is_sampled(published):
    model = language_model("llama")
    expected = sampled_contexts(model, STARTED_SAMPLES, seed=0)
    model.model.generation_config.update(**published)
    assert sampled_contexts(model, STARTED_SAMPLES, seed=0) == expected
