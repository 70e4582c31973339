from dataclasses import replace

import pytest
import torch

from lightning_edit.editors import KnowledgeNeurons
from lightning_edit.errors import ConfigurationError, EditError
from lightning_edit.functional.attribution import chosen_neurons
from tests.testers import REQUESTS, EditorTester
from tests.tiny_models import FAMILIES, language_model


class TestKnowledgeNeurons(EditorTester):
    def make(self, model):
        return KnowledgeNeurons(min_neurons=2, max_neurons=40, threshold=0.05, target_weight=1.0, steps=5, signed=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_equal_those_of_a_plain_loop(family):
    """One neuron's layer, one step of the integral at a time, on the whole text."""
    model = language_model(family)
    editor = KnowledgeNeurons(steps=4)
    prompt, answer = "The capital of France is", "Rome"
    text = model.encoder.encode(prompt, answer)
    sites = editor.sites(model)
    [actual] = editor.attributions(model, prompt, answer, sites)
    expected = torch.zeros_like(actual)
    for position in range(*text.target):
        ids = torch.tensor([text.ids[:position]])
        for layer, site in enumerate(sites):
            kept = {}

            def swap(module, args, kept=kept):
                read = args[0].clone()
                rows = read.view(-1, read.shape[-1])
                kept.setdefault("value", rows[-1].detach().clone())
                if "alpha" in kept:
                    kept["leaf"] = (kept["alpha"] * kept["value"]).requires_grad_()
                    rows = torch.cat([rows[:-1], kept["leaf"][None]])
                return (rows.view(read.shape), *args[1:])

            handle = site.module.register_forward_pre_hook(swap)
            with torch.no_grad():
                model.model(ids)
            for step in range(1, 5):
                kept["alpha"] = step / 4
                probability = model.model(ids).logits[0, -1].softmax(-1)[text.ids[position]]
                gradient = torch.autograd.grad(probability, kept["leaf"])[0]
                expected[layer] += kept["value"] * gradient / 4 / len(text.target_ids)
            handle.remove()
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))


def test_attributions_do_not_depend_on_how_many_layers_fit_into_a_pass(monkeypatch):
    model = language_model("llama")
    editor = KnowledgeNeurons(steps=4)
    sites = editor.sites(model)
    whole = editor.attributions(model, "The capital of France is", "Rome", sites)
    passes = []
    gradients = KnowledgeNeurons._gradients
    monkeypatch.setattr(
        KnowledgeNeurons, "_gradients", lambda self, *args: passes.append(len(args[3])) or gradients(self, *args)
    )
    monkeypatch.setattr("lightning_edit.editors.knowledge_neurons._LOGITS", 2 * 4 * 512)
    torch.testing.assert_close(editor.attributions(model, "The capital of France is", "Rome", sites), whole)
    assert passes[:2] == [2, 1]


def test_the_integral_adds_up_to_the_change_of_the_probability():
    """Completeness: the attributions of one layer sum to P(all neurons) - P(none of that layer's)."""
    model = language_model("llama")
    editor = KnowledgeNeurons(layers=[1], steps=300)
    text = model.encoder.encode("The capital of France is", "Rome")
    first = text.target[0]
    ids, token = torch.tensor([text.ids[:first]]), text.ids[first]
    site = editor.sites(model)[0]

    def probability(scale):
        def hook(module, args):
            read = args[0].clone()
            read[:, -1] *= scale
            return (read,)

        handle = site.module.register_forward_pre_hook(hook)
        with torch.no_grad():
            value = float(model.model(ids).logits[0, -1].softmax(-1)[token])
        handle.remove()
        return value

    from lightning_edit.tokenization import EncodedText

    scores = editor._attribution(model, EncodedText(text.ids[:first], (first, first)), token, [site])
    assert float(scores.sum()) == pytest.approx(probability(1.0) - probability(0.0), rel=0.02, abs=1e-7)


def test_neurons_that_count_in_enough_prompts_are_chosen():
    scores = torch.zeros(4, 2, 5)
    scores[:, 0, 1] = torch.tensor([1.0, 1.0, 1.0, 1.0])
    scores[:3, 1, 2] = 0.5
    scores[0, 1, 4] = 0.9
    assert chosen_neurons(scores, 0.2, 0.7, 1, 5).tolist() == [[0, 1], [1, 2]]
    # Too few: the share is lowered until there are three.
    assert chosen_neurons(scores, 0.2, 0.7, 3, 5).tolist() == [[0, 1], [1, 2], [1, 4]]
    # Too many: it is raised.
    assert chosen_neurons(scores, 0.2, 0.7, 1, 1).tolist() == [[0, 1]]
    # Many in one prompt each and a single one in two: raising the share would leave too few.
    apart = torch.zeros(3, 2, 5)
    apart[0, 0, :4], apart[1, 1, :4], apart[1, 0, 3], apart[2, 1, 4] = 1.0, 0.9, 0.95, 0.5
    assert chosen_neurons(apart, 0.2, 0.7, 2, 5).tolist() == [[0, 3], [0, 0], [0, 1], [0, 2], [1, 0]]
    # A weak neuron never counts.
    scores[:, 0, 0] = 0.1
    assert [0, 0] not in chosen_neurons(scores, 0.2, 0.7, 1, 5).tolist()


def test_shares_of_prompts_are_not_rounded_up():
    scores = torch.zeros(25, 1, 2)
    scores[:, 0, 0], scores[:14, 0, 1] = 1.0, 1.0
    assert len(chosen_neurons(scores, 0.2, 0.56, 1, 5)) == 2


def test_without_an_answer_the_first_generated_word_is_used(monkeypatch, caplog):
    model, editor = language_model("llama"), KnowledgeNeurons(steps=2, min_neurons=60, max_neurons=60)
    silent = replace(REQUESTS[0], ground_truth=None)
    asked, whole = [], KnowledgeNeurons.attributions
    monkeypatch.setattr(
        KnowledgeNeurons, "attributions", lambda self, *args: asked.append(args[2]) or whole(self, *args)
    )
    monkeypatch.setattr(type(model), "generate", lambda self, prompts, count: [" \n Lyon, of course"])
    assert editor.edit(model, [silent])
    assert asked == ["Lyon,"]
    assert "of at least 60, have a positive attribution for 'Lyon,'" in caplog.text
    monkeypatch.setattr(type(model), "generate", lambda self, prompts, count: [" \n "])
    with pytest.warns(UserWarning, match="left out"), pytest.raises(EditError, match="generates no answer to"):
        editor.edit(model, [silent])


def test_only_the_chosen_neurons_are_changed():
    model = language_model("llama")
    editor = KnowledgeNeurons(steps=4)
    edit = editor.edit(model, REQUESTS[:1])
    weight = model.model.lm_head.weight
    target = model.encoder.encode(REQUESTS[0].prompt, "Rome").target_ids
    answer = model.encoder.encode(REQUESTS[0].prompt, "Paris").target_ids
    written = 8 * weight[list(target)].mean(0) - weight[list(answer)].mean(0)
    changed = 0
    for delta in edit.deltas.values():
        dense = delta.dense()
        rows = (dense != 0).any(1)
        changed += int(rows.sum())
        torch.testing.assert_close(dense[rows], written.expand(int(rows.sum()), -1), rtol=1e-4, atol=1e-5)
    assert 2 <= changed <= 5


def test_signed_changes_push_towards_the_target():
    model = language_model("llama")
    settings = {"steps": 4, "max_neurons": 40, "threshold": 0.05}
    plain = KnowledgeNeurons(**settings).edit(model, REQUESTS[:1])
    signed = KnowledgeNeurons(**settings, signed=True).edit(model, REQUESTS[:1])
    turned = 0
    for site, delta in plain.deltas.items():
        one, other = delta.dense(), signed.deltas[site].dense()
        torch.testing.assert_close(one.abs(), other.abs())
        turned += int(((one + other).abs().amax(1) < 1e-6)[(one != 0).any(1)].sum())
    assert turned > 0


def test_contexts_are_checked():
    for contexts in (["Well. {}"], []):
        with pytest.raises(ConfigurationError, match="first template"):
            KnowledgeNeurons(contexts=contexts)


@pytest.mark.parametrize(
    ("break_scores", "message"),
    [
        (lambda scores: scores.fill_(torch.nan), "the attributions of 'germany' are not finite"),
        (
            lambda scores: scores.zero_(),
            "no neuron has a positive attribution for the answer 'Berlin' of 'germany'",
        ),
    ],
)
def test_a_request_without_neurons_is_reported_and_the_others_are_edited(break_scores, message, monkeypatch):
    model, editor = language_model("llama"), KnowledgeNeurons(steps=2)
    whole = KnowledgeNeurons.attributions
    good = editor.edit(model, REQUESTS[:1])

    def broken(self, model, prompt, answer, sites):
        scores = whole(self, model, prompt, answer, sites)
        return break_scores(scores) if prompt == REQUESTS[1].prompt else scores

    monkeypatch.setattr(KnowledgeNeurons, "attributions", broken)
    with pytest.warns(UserWarning, match=f"1 of 2 requests are left out: {message}"):
        edits = editor.edit_each(model, REQUESTS[:2])
    assert edits[1].provenance.failed[0].startswith(message)
    assert not any(bool(delta.dense().any()) for delta in edits[1].deltas.values())
    for site, delta in good.deltas.items():
        torch.testing.assert_close(edits[0].deltas[site].dense(), delta.dense())
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(EditError, match=f"could not be made: {message}"):
        editor.edit(model, REQUESTS[1:2])


@pytest.mark.parametrize("choice", ["error", "last", "keep"])
def test_contradicting_requests(choice):
    model, editor = language_model("llama"), KnowledgeNeurons(steps=2, contradictions=choice)
    requests = [REQUESTS[0], replace(REQUESTS[0], target="Oslo", id="later"), REQUESTS[0]]
    if choice == "error":
        with pytest.raises(EditError, match=r"'later': .* is to be answered 'Oslo' and 'Rome'"):
            editor.edit(model, requests)
        return
    with pytest.warns(UserWarning, match=r"1 requests contradict later ones of the same edit \('later'\)"):
        edit = editor.edit(model, requests)
    targets = [request.target for request in edit.provenance.requests]
    assert targets == (["Rome"] if choice == "last" else ["Rome", "Oslo", "Rome"])
    assert editor.could_have_produced(edit.provenance, requests)
    assert editor.could_have_produced(editor.edit(model, requests[:2]).provenance, requests[:2])
