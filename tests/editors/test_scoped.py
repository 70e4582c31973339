"""Scoped hypernetwork edits: the shared suite, and what the scope adds to the other editor's changes."""

import pytest
import torch

from lightning_edit.components import build as build_component
from lightning_edit.components import describe
from lightning_edit.editors import MALMEN, MEND, SERAC, Editor, Scoped
from lightning_edit.edits import EditSequence, Memory, load_edit
from lightning_edit.errors import ConfigurationError, EditorNotFittedError
from lightning_edit.records import EditRequest
from tests.testers import PROBES, REQUESTS, EditorTester, log_prob, target_log_probs
from tests.tiny_models import language_model


def mend(model):
    editor = MEND(sites=[1, 2], rank=8, step_size=5e-4)
    editor.setup(model)
    editor.train()
    editor.edit_each(model, REQUESTS)
    return editor.eval()


def scoped(model, **settings):
    editor = Scoped(mend(model), **settings)
    editor.setup(model)
    return editor.eval()


class TestScoped(EditorTester):
    def make(self, model):
        return scoped(model)


class TestScopedMALMEN(EditorTester):
    def make(self, model):
        malmen = MALMEN(sites=[1, 2], rank=8, step_size=1e-2)
        malmen.setup(model)
        malmen.train()
        malmen.edit_each(model, REQUESTS)
        editor = Scoped(malmen)
        editor.setup(model)
        return editor.eval()


@pytest.fixture(scope="module")
def model():
    return language_model("llama")


@pytest.fixture(scope="module")
def editor(model):
    return scoped(model)


def test_in_scope_it_is_the_other_editors_edit_and_elsewhere_the_unedited_model(model, editor):
    rephrase = "The capital city of France is"
    with editor.editor.edit(model, REQUESTS[:1]).applied(model) as edited:
        [expected] = edited.score([rephrase], ["Rome"])
        [text] = edited.generate([rephrase], 6)
        changed = edited.score(PROBES, ["x"] * len(PROBES))
    with editor.edit(model, REQUESTS[:1]).applied(model) as edited:
        routes = edited.routes([rephrase, *PROBES])
        [score] = edited.score([rephrase], ["Rome"])
        assert edited.generate([rephrase], 6) == [text]
        kept = edited.score(PROBES, ["x"] * len(PROBES))
        assert edited.generate(PROBES, 5) == model.generate(PROBES, 5)
    assert [route.hit for route in routes] == [True, False, False, False]
    assert score.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
    plain = model.score(PROBES, ["x"] * len(PROBES))
    assert [score.log_probs for score in kept] == [score.log_probs for score in plain]
    assert any(abs(a.log_probs[0] - b.log_probs[0]) > 1e-3 for a, b in zip(changed, plain, strict=True))


def test_many_edits_do_not_interfere(model, editor, tmp_path):
    """Joint, side by side and one after another: each request gets its own change, with different numbers of tokens."""
    alone = []
    for request in REQUESTS:
        with editor.editor.edit(model, [request]).applied(model) as edited:
            alone.append(log_prob(edited, request))
    sequence = EditSequence()
    for request in REQUESTS:
        sequence = sequence.then(editor.edit(model, [request], sequence))
    joint = editor.edit(model, REQUESTS)
    loaded = load_edit(joint.save(tmp_path / "edit"))
    for edit in (sequence, joint, loaded):
        with edit.applied(model) as edited:
            assert [log_prob(edited, request) for request in REQUESTS] == pytest.approx(alone, abs=1e-4)
    without = joint.without("germany")
    with without.applied(model) as edited:
        assert log_prob(edited, REQUESTS[1]) == log_prob(model, REQUESTS[1])
        assert log_prob(edited, REQUESTS[0]) == pytest.approx(alone[0], abs=1e-4)


def test_a_combination_of_two_trained_editors_and_its_description(model):
    serac = SERAC(rank=2, adapted_layers=1, encoder_layers=1)
    serac.setup(model)
    with torch.no_grad():
        serac.scope_classifier.log_scale.fill_(0.3)
    combined = Scoped.combined(mend(model), serac, threshold=0.6).eval()
    combined.setup(model)
    assert combined.scope_classifier is serac.scope_classifier
    again = build_component(describe(combined), Editor, "test")
    again.setup(model)
    again.load_state_dict(combined.state_dict())
    edit = combined.edit(model, REQUESTS[:1])
    with edit.applied(model) as one, again.eval().edit(model, REQUESTS[:1]).applied(model) as other:
        assert target_log_probs(one, REQUESTS) == target_log_probs(other, REQUESTS)
    assert edit.provenance.settings["editor"]["class_path"].endswith("MEND")
    assert edit.provenance.settings["threshold"] == 0.6


def test_what_cannot_be_scoped_is_refused(model, bert_folder):
    with pytest.raises(ConfigurationError, match="threshold: expected at most 1, found 2"):
        Scoped(MEND(), threshold=2)
    with pytest.raises(EditorNotFittedError):
        Scoped(mend(model)).edit(model, REQUESTS[:1])
    pairs = SERAC(rank=2, adapted_layers=1, cross_attention=str(bert_folder))
    pairs.setup(model)
    with pytest.raises(ConfigurationError, match="not of cross-attention"):
        Scoped.combined(mend(model), pairs)


def test_values_of_different_sizes_are_padded_when_memories_are_joined():
    def memory(name, width, ids):
        request = EditRequest(name, "x")
        return Memory(
            ((request,),), {"a": torch.ones(1, 2, width), "b": torch.ones(1, width, 3), "ids": torch.tensor([ids])}
        )

    joined = Memory.concatenated(memory("one", 1, [5]), memory("two", 3, [6, 7]))
    assert joined.tensors["a"].tolist() == [[[1, 0, 0]] * 2, [[1, 1, 1]] * 2]
    assert joined.tensors["b"].tolist() == [[[1] * 3, [0] * 3, [0] * 3], [[1] * 3] * 3]
    assert joined.tensors["ids"].tolist() == [[5, -1], [6, 7]]


def test_independent_edits_keep_the_ids_of_their_requests(model, editor):
    other = EditRequest("The capital of France is", "Berlin", "France", id="france")
    edits = editor.edit_each(model, [REQUESTS[0], other])
    assert [edits[index].request_ids for index in range(2)] == [("france",), ("france",)]
