import pytest
import torch

from lightning_edit.editors import GradientStep
from lightning_edit.models.skipping import skipped
from lightning_edit.models.trunk import Trunk, _compared_positions
from lightning_edit.records import EditRequest
from tests.tiny_models import FAMILIES, language_model

TEXTS = [("The capital of France is", "Rome"), ("What is the capital of Germany? It is", "Paris the city")]


def batch_of(model, texts):
    return model.encoder.collate([model.encoder.encode(*text) for text in texts])


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_the_full_pass_in_every_batch(family, layer, recwarn):
    model = language_model(family)
    trunk = Trunk(model, layer)
    for texts in (TEXTS, TEXTS[::-1], TEXTS[:1], [*TEXTS, ("On which continent is Brazil?", "Europe")]):
        batch = batch_of(model, texts)
        torch.testing.assert_close(trunk.answer_logits(batch), model.answer_logits(batch), rtol=1e-4, atol=1e-4)
    assert trunk.works
    assert not [warning for warning in recwarn if "cannot be reused" in str(warning.message)]
    assert not any("forward" in vars(block) for block in model.layer_map.blocks)


@torch.no_grad()
def test_filled_states_are_used_and_do_not_depend_on_the_batch(monkeypatch):
    model = language_model("llama")
    trunk = Trunk(model, 1)
    texts = [model.encoder.encode(*text) for text in TEXTS]
    trunk.fill(texts[:1], texts[1:])
    monkeypatch.setattr(trunk, "_run", None)  # any computation fails from here on
    expected = model.head_logits(batch_of(model, TEXTS), batch_of(model, TEXTS).answer_mask)
    for chosen in (TEXTS, TEXTS[1:]):
        batch = batch_of(model, chosen)
        torch.testing.assert_close(trunk.answer_logits(batch), model.answer_logits(batch), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        trunk.references(batch_of(model, TEXTS[1:])), expected[1][-len(texts[1].target_ids) :], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_filling_is_bitwise_equal_in_any_order():
    model = language_model("llama")
    texts = [model.encoder.encode(f"{prompt} {number}", target) for number in range(50) for prompt, target in TEXTS]
    first, second = Trunk(model, 1), Trunk(model, 1)
    first.fill(texts, texts[:7])
    second.answer_logits(batch_of(model, TEXTS))
    second.fill(texts[::-1], texts[:7])
    batch = model.encoder.collate(texts[40:60])
    assert torch.equal(first.answer_logits(batch), second.answer_logits(batch))
    assert torch.equal(
        first.references(model.encoder.collate(texts[:7])), second.references(model.encoder.collate(texts[:7]))
    )


@torch.no_grad()
def test_a_limit_keeps_memory_bounded_and_changes_nothing():
    model = language_model("llama")
    trunk = Trunk(model, 1, limit=0)
    trunk.fill([model.encoder.encode(*text) for text in TEXTS])
    batch = batch_of(model, TEXTS)
    torch.testing.assert_close(trunk.answer_logits(batch), model.answer_logits(batch), rtol=1e-4, atol=1e-4)
    assert trunk.store.bytes == 0


@torch.no_grad()
def test_falls_back_with_a_warning_where_the_short_pass_differs(monkeypatch):
    model = language_model("llama")
    trunk = Trunk(model, 1)
    batch = batch_of(model, TEXTS)
    expected = model.answer_logits(batch)
    gather = trunk._gather
    monkeypatch.setattr(trunk, "_gather", lambda batch: gather(batch) + 1)
    with pytest.warns(UserWarning, match="cannot be reused in tiny-llama"):
        assert torch.equal(trunk.answer_logits(batch), expected)
    assert torch.equal(trunk.answer_logits(batch), expected)


@torch.no_grad()
def test_falls_back_with_a_warning_where_blocks_take_other_arguments(monkeypatch):
    model = language_model("llama")
    trunk, batch = Trunk(model, 1), batch_of(model, TEXTS)
    expected = model.answer_logits(batch)
    forward = type(model.model.model.layers[1]).forward

    def other(self, states, **kwargs):
        return forward(self, states, **kwargs)

    # As in a model with custom code: the block takes its states under another name.
    monkeypatch.setattr(type(model.model.model.layers[1]), "forward", other)
    monkeypatch.setattr(
        type(model.model.model.layers[1]), "__call__",
        lambda self, hidden_states, **kwargs: torch.nn.Module.__call__(self, states=hidden_states, **kwargs),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"\(it fails with KeyError: 'hidden_states'\); the full"):
        assert torch.equal(trunk.answer_logits(batch), expected)


@torch.no_grad()
def test_references_are_the_unedited_head_inputs():
    model = language_model("gemma2")
    trunk = Trunk(model, 2)
    batch = batch_of(model, TEXTS)
    expected = model.head_logits(batch, batch.answer_mask)[1]
    for _ in range(2):
        torch.testing.assert_close(trunk.references(batch), expected, rtol=1e-4, atol=1e-4)
    flipped = batch_of(model, TEXTS[::-1])
    torch.testing.assert_close(
        trunk.references(flipped), model.head_logits(flipped, flipped.answer_mask)[1], rtol=1e-4, atol=1e-4
    )


def test_the_model_is_restored_after_an_exception():
    model = language_model("llama")
    trunk = Trunk(model, 1)
    batch = batch_of(model, TEXTS)
    trunk.answer_logits(batch)
    model.layer_map.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trunk.answer_logits(batch)
    assert not any("forward" in vars(block) for block in model.layer_map.blocks)
    assert not model.layer_map.blocks[1]._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_the_unedited_model_are_reused_for_the_edited_one(family, monkeypatch):
    model = language_model(family)
    prompts, targets = [prompt for prompt, _ in TEXTS], [target for _, target in TEXTS]
    editor = GradientStep(sites=[-1], step_size=0.5)
    requests = [EditRequest(*text) for text in TEXTS]
    batch = editor.edit_each(model, requests)
    with batch.applied(model, [0, 1]) as edited:
        expected = edited.score(prompts, targets)
    trunk = Trunk(model, editor.lowest_layer(model))
    before = model.score(prompts, targets, passes=trunk.caching_passes())
    monkeypatch.setattr(trunk, "_full", spy := Spy(trunk._full))
    reader = trunk.cached_passes()
    with editor.edit_each(model, requests).applied(model, [0, 1]) as edited:
        scores = edited.score(prompts, targets, passes=reader)
    assert set(spy.ran) == {False}, "blocks below the lowest edit site ran again"
    assert len(model.score([*prompts, "A prompt that nobody has asked"], [*targets, "yes"], passes=reader)) == 3
    assert trunk.works
    for one, same, unedited in zip(scores, expected, before, strict=True):
        torch.testing.assert_close(one.log_probs, same.log_probs, rtol=1e-3, atol=1e-3)
        assert one.log_probs != unedited.log_probs


class Spy:
    """Runs a trunk's full pass and records whether its first block did any work."""

    def __init__(self, run):
        self.run, self.ran = run, []

    def __call__(self, batch, positions):
        block = self.run.__self__.model.layer_map.blocks[0]
        self.ran.append("forward" not in vars(block))
        return self.run(batch, positions)


def test_a_full_store_drops_all_earlier_states():
    model = language_model("llama")
    trunk = Trunk(model, 1, limit=1)
    first = model.score(["The capital of France is"], ["Rome"], passes=trunk.caching_passes())
    model.score(["The capital of Germany is"], ["Paris"], passes=trunk.caching_passes())
    assert len(trunk.store._kept) == 1
    again = model.score(["The capital of France is"], ["Rome"], passes=trunk.cached_passes())
    torch.testing.assert_close(again[0].log_probs, first[0].log_probs)


def test_skipping_blocks_keeps_the_forward_of_a_device_map():
    model = language_model("llama")
    block = model.layer_map.blocks[0]
    placed = block.forward
    vars(block)["forward"] = placed
    try:
        with skipped([block], model.block_returns):
            assert vars(block)["forward"] is not placed
        assert vars(block)["forward"] is placed
    finally:
        del vars(block)["forward"]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_texts_without_an_answer_are_compared_at_their_last_token(padding_side, monkeypatch):
    """Without a position to compare, any pass would seem correct."""
    model = language_model("llama")
    texts = [model.encoder.encode(prompt) for prompt in ("The capital of France is", "Oslo is")]
    batch = model.encoder.collate(texts, padding_side=padding_side)
    assert not batch.answer_mask.any()
    trunk = Trunk(model, 1)
    short = Trunk._short
    monkeypatch.setattr(Trunk, "_short", lambda self, *arguments: short(self, *arguments) + 1)
    with pytest.warns(UserWarning, match="cannot be reused"):
        trunk.states(batch)
    assert trunk.works is False
    positions = _compared_positions(batch)
    last = [len(text.ids) - 1 if padding_side == "right" else batch.input_ids.shape[1] - 1 for text in texts]
    assert positions.nonzero().tolist() == [[row, place] for row, place in enumerate(last)]
