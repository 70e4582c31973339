"""Requests whose gradients are not finite are left out; the others are edited as without them."""

import pytest
import torch

from lightning_edit.editors import MALMEN, MEND, GradientStep, Scoped, gradient
from tests.testers import REQUESTS, target_log_probs
from tests.tiny_models import language_model


def trained(editor, model):
    """The editor with statistics of a few requests."""
    editor.setup(model)
    editor.train()
    editor.edit_each(model, REQUESTS)
    return editor.eval()


def mend(model):
    return trained(MEND(sites=[1, 2], rank=8, step_size=5e-4), model)


def malmen(model):
    return trained(MALMEN(sites=[1, 2], rank=8, step_size=0.02), model)


def scoped(model):
    editor = Scoped(mend(model))
    editor.setup(model)
    return editor.eval()


@pytest.mark.parametrize("make", [mend, malmen, scoped, lambda model: GradientStep([1])])
@pytest.mark.parametrize("joint", [False, True])
def test_a_request_that_is_not_finite_is_left_out_and_the_others_are_edited(make, joint, monkeypatch):
    model = language_model("llama")
    editor, whole = make(model), gradient.capture_factors
    bad = model.encoder.encode(REQUESTS[1].prompt, REQUESTS[1].target).ids

    def broken(model, batch, *arguments):
        factors, losses = whole(model, batch, *arguments)
        rows = [row for row, ids in enumerate(batch.input_ids.tolist()) if tuple(ids[-len(bad) :]) == tuple(bad)]
        rows += [row for row, ids in enumerate(batch.input_ids.tolist()) if tuple(ids[: len(bad)]) == tuple(bad)]
        for one in factors.values():
            one.delta[torch.isin(one.rows, torch.tensor(rows, dtype=torch.int64))] = torch.nan
        return factors, losses

    groups = [REQUESTS] if joint else [[request] for request in REQUESTS]
    expected = editor.edit_each_group(model, [[REQUESTS[0], REQUESTS[2]]] if joint else groups)
    monkeypatch.setattr(gradient, "capture_factors", broken)
    with pytest.warns(UserWarning, match=r"1 of 3 requests are left out: the gradient of 'germany' at .* not finite"):
        edits = editor.edit_each_group(model, groups)
    finite_requests = [REQUESTS[0], REQUESTS[2]]
    for edit, expected_edit in zip([edits[0], edits[-1]], [expected[0], expected[-1]], strict=True):
        with edit.applied(model) as edited, expected_edit.applied(language_model("llama")) as other:
            torch.testing.assert_close(
                target_log_probs(edited, finite_requests),
                target_log_probs(other, finite_requests),
                rtol=1e-4,
                atol=1e-4,
            )
    if not joint:
        assert edits[0].provenance.failed == edits[2].provenance.failed == ()
        with edits[1].applied(model) as edited:
            assert target_log_probs(edited, REQUESTS) == target_log_probs(model, REQUESTS)
    assert "'germany'" in edits[0 if joint else 1].provenance.failed[0]


@pytest.mark.parametrize("make", [mend, malmen, scoped, lambda model: GradientStep([1])])
@pytest.mark.parametrize("joint", [False, True])
def test_edits_of_requests_that_all_fail_change_nothing(make, joint, monkeypatch):
    model = language_model("llama")
    editor, whole = make(model), gradient.capture_factors

    def broken(*arguments):
        factors, losses = whole(*arguments)
        return factors, losses.fill_(torch.nan)

    monkeypatch.setattr(gradient, "capture_factors", broken)
    groups = [REQUESTS] if joint else [[request] for request in REQUESTS]
    with pytest.warns(UserWarning, match="3 of 3 requests are left out"):
        edits = editor.edit_each_group(model, groups)
    for edit in edits:
        with edit.applied(model) as edited:
            assert target_log_probs(edited, REQUESTS) == target_log_probs(model, REQUESTS)


@pytest.mark.filterwarnings("ignore:1 of 2 requests are left out")
@pytest.mark.parametrize("make", [mend, scoped])
def test_an_edit_is_made_and_recognised_if_one_of_its_requests_fails(make, monkeypatch):
    model = language_model("llama")
    editor, whole = make(model), gradient.capture_factors

    def broken(*arguments):
        factors, losses = whole(*arguments)
        losses[1] = torch.nan
        return factors, losses

    monkeypatch.setattr(gradient, "capture_factors", broken)
    edit = editor.edit(model, REQUESTS[:2])
    assert len(edit.provenance.failed) == 1
    assert editor.could_have_produced(edit.provenance, REQUESTS[:2])
    assert not editor.could_have_produced(edit.provenance, REQUESTS[1:])
    assert not editor.could_have_produced(edit.provenance, REQUESTS)
