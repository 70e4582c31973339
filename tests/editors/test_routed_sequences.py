"""Sequences of routed edits: editing again, undoing, layers of several kinds, and decisions that are made once."""

import warnings

import pytest
import torch

from lightning_edit.editors import GRACE, ICE, MELO, WISE, FineTuning, GradientStep, TuningSettings
from lightning_edit.editors.clusters import FORGOTTEN, Clusters
from lightning_edit.editors.codebook import ABSORBED, Codebook
from lightning_edit.edits import EditSequence, Memory
from lightning_edit.edits.loading import load_edit
from lightning_edit.errors import EditError
from lightning_edit.records import EditRequest
from tests.testers import PROBES, REQUESTS
from tests.tiny_models import language_model

TUNING = TuningSettings(steps=4, learning_rate=0.1, skip_below=0, stop_below=0)


@pytest.fixture(scope="module")
def model():
    return language_model("llama")


def item(prompt, target, key, radius=1.0):
    point = torch.tensor([key])
    tensors = {"key": point, "centre": point, "value": torch.zeros(1, 2), "radius": torch.tensor([radius])}
    return Memory(((EditRequest(prompt, target, id=prompt),),), tensors)


@pytest.mark.parametrize(("router", "unused"), [(Codebook("site", 1.0), ABSORBED), (Clusters("site", 1.0), FORGOTTEN)])
def test_a_fact_that_is_edited_again_leaves_no_trace_of_its_earlier_edit(router, unused):
    """The first key absorbed the second one, which has to answer for itself once the first is gone."""
    first, second = item("A", "blue", [0.0, 0.0]), item("B", "blue", [0.5, 0.0])
    again = item("A", "red", [9.0, 0.0])
    memory = router.join(router.join(router.join(first.select([]), first), second), again)
    assert [request.id for request in memory.all_requests] == ["B", "A"]
    assert memory.tensors["radius"].tolist() == [1.0, 1.0]
    assert memory.tensors["centre"].tolist() == [[0.5, 0.0], [9.0, 0.0]]
    assert unused not in memory.tensors["radius"].tolist()


def test_a_routed_edit_depends_on_earlier_changes_of_the_weights(model):
    weight = GradientStep(sites=[0], step_size=0.5).edit(model, REQUESTS[:1])
    grace = GRACE(site=-1, tuning=TUNING)
    other = grace.edit(model, REQUESTS[1:2])
    later = grace.edit(model, REQUESTS[2:], EditSequence([weight, other]))
    assert later.provenance.depends_on == (weight.id,)
    sequence = EditSequence([weight, other, later])
    with pytest.raises(EditError, match="were computed on top of it"):
        sequence.without(weight.id)
    assert sequence.without(other.id).ids == (weight.id, later.id)
    text = ICE().edit(model, REQUESTS[2:], EditSequence([weight]))
    assert text.provenance.depends_on == ()


def test_a_chain_of_weight_edits_is_named_by_its_last_edit(model):
    editor, sequence = GradientStep(sites=[0], step_size=0.1), EditSequence()
    for request in REQUESTS[:2]:
        sequence = sequence.then(editor.edit(model, [request], sequence))
    later = GRACE(site=-1, tuning=TUNING).edit(model, REQUESTS[2:], sequence)
    assert later.provenance.depends_on == (sequence.ids[-1],)


def test_a_router_over_another_router_is_reported(model):
    sequence = EditSequence([GRACE(site=-1, tuning=TUNING).edit(model, REQUESTS[:1]), ICE().edit(model, REQUESTS[1:2])])
    with pytest.warns(UserWarning, match="prompts that it answers do not reach"), sequence.applied(model):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EditSequence([ICE().edit(model, [request]) for request in REQUESTS]).applied(model):
            pass


def test_each_prompt_is_routed_once_while_an_edit_is_applied(model, monkeypatch):
    edit = GRACE(site=-1, tuning=TUNING).edit(model, REQUESTS)
    seen, match = [], Codebook.match

    def counted(self, model, prompts, memory, allowed):
        seen.extend(prompts)
        return match(self, model, prompts, memory, allowed)

    monkeypatch.setattr(Codebook, "match", counted)
    with edit.applied(model) as edited:
        routes = edited.routes(PROBES[:2])
        edited.score([*PROBES[:2], PROBES[0]], ["Rome"] * 3)
        edited.generate(PROBES[:3], 2)
        assert edited.routes(PROBES[:2]) == routes
    assert seen == PROBES[:3]
    # Independent edits are applied several times in an evaluation.
    batch, weight = GRACE(site=-1, tuning=TUNING).edit_each(model, REQUESTS), GradientStep(sites=[0], step_size=0.5)
    seen.clear()
    for rows in ([0, 1, 2], [2, 1, 0], [0, 1, 2]):
        with batch.applied(model, rows) as edited:
            edited.routes(PROBES[:3])
    # The second prompt is under the same edit each time.
    assert seen == [*PROBES[:3], PROBES[0], PROBES[2]]
    # On top of another edit the states differ, and so may the decisions.
    with weight.edit(model, REQUESTS[:1]).applied(model), batch.applied(model, [0, 1, 2]) as edited:
        edited.routes(PROBES[:3])
    assert seen[5:] == PROBES[:3]


def test_wise_trains_beside_the_same_text_wherever_a_request_stands(model):
    unrelated = [f"Some text with the number {number} in it" for number in range(5)]
    editor = WISE(
        site=-1, contexts=["{}"], unrelated=unrelated, tuning=TuningSettings(3, 0.05, skip_below=0, stop_below=0)
    )
    together = editor.edit_each(model, REQUESTS)
    for number, request in enumerate(REQUESTS):
        [alone] = editor.edit(model, [request]).memory.tensors["matrix"]
        [beside] = together[number].memory.tensors["matrix"]
        torch.testing.assert_close(beside, alone, rtol=1e-3, atol=1e-5)


def test_a_value_is_trained_at_the_prompt_if_only_its_last_position_is_scored(model):
    tuning = TuningSettings(8, 0.5, scored="prompt_last", skip_below=0, stop_below=0)
    [request] = REQUESTS[:1]
    edit = GRACE(site=-1, replacement="replace_last", tuning=tuning).edit(model, [request])
    first_token = request.target.split()[0][:1]
    with edit.applied(model) as edited:
        [after] = edited.score([request.prompt], [first_token])
    [before] = model.score([request.prompt], [first_token])
    assert after.log_probs[0] > before.log_probs[0] + 0.5


@pytest.mark.parametrize("editor", [MELO(key_site=-3, sites=[-1], tuning=TUNING), WISE(site=-1, tuning=TUNING)])
def test_an_edit_whose_requests_failed_together_is_recognised(model, editor, monkeypatch):
    from lightning_edit.editors import melo, side_memory_training

    def failing(model, texts, names, tuned, *arguments):
        return {0: f"the loss of {names[0]!r} became nan"} if names else {}

    monkeypatch.setattr(melo, "tune", failing)
    monkeypatch.setattr(side_memory_training, "tune", failing)
    with pytest.warns(UserWarning, match="left out"):
        batch = editor.edit_each_group(model, [REQUESTS[:2], REQUESTS[2:]])
    [failed, *_] = batch
    assert set(failed.provenance.failed_requests) == set(REQUESTS[:2])
    assert editor.could_have_produced(failed.provenance, REQUESTS[:2])
    assert not editor.could_have_produced(failed.provenance, REQUESTS)


def test_state_is_saved_with_every_kind_of_edit(model, tmp_path):
    edit = GRACE(site=-1, tuning=TUNING).edit(model, REQUESTS[:1])
    edit.state = {"rows": torch.arange(6.0).view(2, 3)}
    loaded = load_edit(edit.save(tmp_path / "edit"))
    assert torch.equal(loaded.state["rows"], edit.state["rows"])
    weight = FineTuning(sites=[1], tuning=TUNING).edit(model, REQUESTS[:1])
    assert load_edit(weight.save(tmp_path / "weight")).state == {}


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_all_beams_of_a_prompt_are_edited_also_where_positions_are_flattened(family):
    base = language_model(family)
    editor = GRACE(site=-1, radius=50.0, tuning=TuningSettings(12, 0.5, skip_below=0, stop_below=0))
    batch, prompts = editor.edit_each(base, REQUESTS), [request.prompt for request in REQUESTS]
    with batch.applied(base, [0, 1, 2]) as edited:
        together = edited.generate(prompts, 5, num_beams=3)
    assert all(text != other for text, other in zip(together, base.generate(prompts, 5, num_beams=3), strict=True))
    for number, prompt in enumerate(prompts):
        with batch[number].applied(base) as edited:
            assert edited.generate([prompt], 5, num_beams=3) == [together[number]]
