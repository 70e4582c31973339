"""WholePasses from the subject on, against whole texts in the full model: logits and gradients, for every family."""

import warnings

import pytest
import torch

from lightning_edit.editors.prompts import every_context, last_subject_token
from lightning_edit.models import LanguageModel
from lightning_edit.models.suffix_passes import SuffixPasses, WholePasses, shortest_passes
from lightning_edit.records import EditRequest
from tests.testers import REQUESTS
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model

TEMPLATES = ["{}", "Well. {}", "I think so, and I have thought so for long. {}"]
WINDOWS = ("gemma2", "gemma3", "mistral")
"""Families whose tiny models have an attention window of eight tokens."""


def texts_of(model, templates=TEMPLATES):
    texts = every_context(model, REQUESTS, templates, with_targets=True)
    return texts, [last_subject_token(text) for text in texts]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_texts(family, layer, recwarn):
    model = LanguageModel(build(FAMILIES[family][0](), torch.float64), byte_level_tokenizer(), name=family)
    texts, starts = texts_of(model, ["{}"] * 3 if family in WINDOWS else TEMPLATES)
    passes = shortest_passes(model, texts, starts, layer)
    assert isinstance(passes, SuffixPasses)
    assert not [warning for warning in recwarn if "cannot be reused" in str(warning.message)]
    delta = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 4, 5, 8])
    with torch.no_grad():
        delta += 0.1

    def loss(run):
        batch = run.batch.select(rows)
        positions = (run.start - run.offset)[rows]

        def shift(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            mask = torch.zeros(*hidden.shape[:2], 1, dtype=hidden.dtype)
            mask[torch.arange(len(rows)), positions] = 1
            shifted = hidden + mask * delta
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        handle = model.layer_map.block(layer).register_forward_hook(shift)
        try:
            logits = run.head_logits(rows, batch, batch.answer_mask)
        finally:
            handle.remove()
        return logits.log_softmax(-1).gather(1, batch.target_ids[:, None]).sum()

    for _ in range(2):  # a pass must not change the kept states
        value = loss(passes)
    expected = loss(WholePasses(model, texts, starts, 0))
    gradient, wanted = (torch.autograd.grad(result, delta)[0] for result in (value, expected))
    # Several families normalise in float32 whatever the model's precision.
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_exact_in_float64_for_a_float64_model():
    model = LanguageModel(build(FAMILIES["gpt2"][0](), torch.float64), byte_level_tokenizer())
    texts, starts = texts_of(model)
    rows = torch.arange(len(texts))
    short, whole = SuffixPasses(model, texts, starts, 1), WholePasses(model, texts, starts, 0)
    with torch.no_grad():
        actual = short.head_logits(rows, short.batch, short.batch.answer_mask)
        expected = whole.head_logits(rows, whole.batch, whole.batch.answer_mask)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_falls_back_with_a_warning_where_logits_differ(monkeypatch):
    model = language_model("llama")
    texts, starts = texts_of(model)
    states = SuffixPasses._entering_states
    monkeypatch.setattr(SuffixPasses, "_entering_states", lambda self, rows: states(self, rows) + 1)
    with pytest.warns(UserWarning, match=r"cannot be reused in tiny-llama \(relative difference"):
        passes = shortest_passes(model, texts, starts, 1)
    assert type(passes) is WholePasses


def test_falls_back_with_a_warning_where_the_cache_has_another_form(monkeypatch):
    model = language_model("llama")
    texts, starts = texts_of(model)
    monkeypatch.setattr(SuffixPasses, "_read_prefixes", lambda self, before: object())
    with pytest.warns(UserWarning, match="whole texts are run"):
        assert type(shortest_passes(model, texts, starts, 1)) is WholePasses


@pytest.mark.parametrize("family", WINDOWS)
def test_falls_back_with_a_warning_where_a_window_is_too_short(family):
    model = language_model(family)
    texts, starts = texts_of(model)
    with pytest.warns(UserWarning, match="cannot be reused"):
        passes = shortest_passes(model, texts, starts, 1)
    assert type(passes) is WholePasses


def test_longer_texts_than_the_compared_ones_are_checked_for_a_window():
    """A comparison is valid for texts twice as long, and a window may end in between."""
    model = language_model("mistral")
    window = model.model.config.sliding_window
    short = model.encoder.encode("a b France has", "Rome", (4, 10))
    assert type(shortest_passes(model, [short], [2], 1)) is SuffixPasses
    text = "x" * (window + 1) + " France"
    longer = model.encoder.encode(text, "", (window + 2, len(text)))
    start = last_subject_token(longer)
    assert window < start
    assert model.fast_paths.is_verified("suffixes", 1, len(short.ids))
    assert not model.fast_paths.is_refused("suffixes", 1, len(longer.ids))
    with pytest.warns(UserWarning, match="an attention window is shorter"):
        assert type(shortest_passes(model, [longer], [start], 1)) is WholePasses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What was compared once is remembered, for both lengths.
        assert type(shortest_passes(model, [longer], [start], 1)) is WholePasses
        assert type(shortest_passes(model, [short], [2], 1)) is SuffixPasses


def test_texts_that_begin_with_their_subject_are_run_whole():
    model = language_model("llama")
    text = model.encoder.encode("France has the capital", "Rome", (0, 6))
    assert type(shortest_passes(model, [text], [0], 1)) is WholePasses


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_begins_with_its_subject_beside_others(family):
    """It has no prefix; what a model computes for an empty row must not leak into any other pass."""
    config = FAMILIES[family][0]()
    if family in WINDOWS:
        config.sliding_window = 64
    model = LanguageModel(build(config, torch.float64), byte_level_tokenizer(), name=family)
    shortest_passes(model, *texts_of(model), 1)
    request = EditRequest("A has the capital", "Rome", "A")
    texts = every_context(model, [request], TEMPLATES, with_targets=True)
    starts = [last_subject_token(text) for text in texts]
    assert starts[0] == 0
    short, whole = shortest_passes(model, texts, starts, 1), WholePasses(model, texts, starts, 0)
    assert isinstance(short, SuffixPasses)
    rows = torch.arange(len(texts))
    with torch.no_grad():
        actual = short.head_logits(rows, short.batch, short.batch.answer_mask)
        expected = whole.head_logits(rows, whole.batch, whole.batch.answer_mask)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_only_the_first_pass_is_compared_and_much_longer_texts_again(monkeypatch):
    model = language_model("llama")
    compared, head_logits = [], WholePasses.head_logits

    def counted(self, *arguments):
        compared.append(self.batch.input_ids.shape[1])
        return head_logits(self, *arguments)

    monkeypatch.setattr(WholePasses, "head_logits", counted)
    texts, starts = texts_of(model)
    for _ in range(2):
        shortest_passes(model, texts, starts, 1)
    assert len(compared) == 1
    shortest_passes(model, texts, starts, 2)
    assert len(compared) == 2
    texts, starts = texts_of(model, ["{}", "Well, well. " * 30 + "{}"])
    shortest_passes(model, texts, starts, 1)
    assert len(compared) == 3


def test_no_block_below_the_changed_one_is_run_again():
    model = language_model("llama")
    texts, starts = texts_of(model)
    short, run = SuffixPasses(model, texts, starts, 2), []
    for layer in range(3):
        model.layer_map.block(layer).mlp.register_forward_hook(lambda *args, layer=layer: run.append(layer))
    rows = torch.arange(len(texts))
    with torch.no_grad():
        short.head_inputs(rows, short.batch, short.batch.answer_mask)
    assert run == [2]


def test_nothing_is_computed_after_the_last_position_that_is_read():
    model = language_model("llama")
    texts, starts = texts_of(model)
    short = SuffixPasses(model, texts, starts, 1)
    widths = []
    handle = model.layer_map.block(1).register_forward_hook(
        lambda module, args, output: widths.append(args[0].shape[1])
    )
    rows = torch.arange(len(texts))
    with torch.no_grad():
        short.head_inputs(rows, short.batch, short.batch.answer_mask)
        handle.remove()
    # A target's last token predicts nothing that is scored.
    assert widths == [short.batch.input_ids.shape[1] - 1]
