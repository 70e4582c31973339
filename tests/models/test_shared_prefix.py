"""Texts that begin alike, run from the end of their common prefix on, against whole texts in the full model."""

from contextlib import nullcontext

import pytest
import torch
import transformers

from lightning_edit.editors import ICE
from lightning_edit.errors import ConfigurationError
from lightning_edit.models import LanguageModel, shared_prefix
from lightning_edit.records import EditRequest
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model

PREFIX = "New Fact: The capital of France is Rome"
PROMPTS = [f"{PREFIX}. {end}" for end in ("Who?", "The city is", "In which country", "Rome")]
TARGETS = ["x", "Rome", "Italy and so on", "is"]
WINDOWS = ("gemma2", "gemma3", "mistral", "gpt_neo")
"""Families whose tiny models have an attention window that is shorter than the prefix."""


def model_of(family):
    return LanguageModel(build(FAMILIES[family][0](), torch.float32), byte_level_tokenizer(), name=family)


def encoded(model, targets=()):
    return [model.encoder.encode(prompt, target) for prompt, target in zip(PROMPTS, targets or [""] * 4, strict=True)]


@pytest.fixture(autouse=True)
def _short_prefixes(monkeypatch):
    monkeypatch.setattr(shared_prefix, "_MIN_TOKENS", 4)
    monkeypatch.setattr(shared_prefix, "_MIN_SAVED_TOKENS", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_generations_are_those_of_whole_texts(family, recwarn):
    model = model_of(family)
    expected = model.score(PROMPTS, TARGETS, keep_head_input=True)
    texts = model.generate(PROMPTS, [3, 1, 5, 4])
    prefix = shared_prefix.shared_prefix(model, encoded(model, TARGETS))
    assert not [warning for warning in recwarn if "cannot be reused" in str(warning.message)]
    if family in WINDOWS:
        assert prefix is None
        return
    assert len(prefix) >= 10
    for _ in range(2):  # a pass must not change the cache
        scores = model.score(PROMPTS, TARGETS, [one.head_input for one in expected], True, prefix=prefix)
        for score, wanted in zip(scores, expected, strict=True):
            assert score.predicted_ids == wanted.predicted_ids
            assert score.log_probs == pytest.approx(wanted.log_probs, abs=1e-5)
            assert score.divergence == pytest.approx(0.0, abs=1e-6)
        assert model.generate(PROMPTS, [3, 1, 5, 4], prefix=prefix) == texts


def test_a_prefix_ends_before_the_last_token_and_the_first_target():
    model = language_model()
    same = [model.encoder.encode(PREFIX)] * 2
    assert len(shared_prefix.shared_prefix(model, same)) == len(same[0].ids) - 1
    answered = [model.encoder.encode(PREFIX, target) for target in ("Rome", "Rome is it")]
    assert len(shared_prefix.shared_prefix(model, answered)) == answered[0].target[0] - 1
    assert shared_prefix.shared_prefix(model, same[:1]) is None
    different = [model.encoder.encode(text) for text in ("One and more", "Two and more")]
    assert shared_prefix.shared_prefix(model, different) is None


def test_a_text_that_begins_otherwise_is_refused():
    model = language_model()
    prefix = shared_prefix.shared_prefix(model, encoded(model))
    other = "Something else that is as long as the prefix of the others, or longer"
    with pytest.raises(ConfigurationError, match="does not begin with the prefix"):
        model.score([other], ["x"], prefix=prefix)
    for text in (other, "New"):
        with pytest.raises(ConfigurationError, match="does not begin with the prefix"):
            model.generate([text], 3, prefix=prefix)
    for given in ({"passes": model}, {"around": lambda rows: nullcontext()}):
        with pytest.raises(ConfigurationError, match="together with other passes"):
            model.score(PROMPTS, TARGETS, prefix=prefix, **given)
    with pytest.raises(ConfigurationError, match="together with edits of rows"):
        model.generate(PROMPTS, 3, prefix=prefix, around=lambda rows: nullcontext())


def test_texts_that_outgrow_an_attention_window_are_run_whole():
    config = FAMILIES["mistral"][0]()
    config.sliding_window = 40
    model = LanguageModel(build(config, torch.float32), byte_level_tokenizer(), name="mistral")
    texts = encoded(model)
    longest = max(len(text.ids) for text in texts)
    assert shared_prefix.shared_prefix(model, texts, 40 - 8 - longest) is not None
    assert shared_prefix.shared_prefix(model, texts, 40 - 8 - longest + 1) is None


def test_padding_is_part_of_the_check_where_all_texts_are_equally_long(recwarn):
    config = transformers.MptConfig(
        d_model=32, n_heads=4, n_layers=2, vocab_size=512, max_seq_len=64, expansion_ratio=2,
        attn_config={"attn_impl": "eager"},
    )  # fmt: skip
    # Its positions count padded tokens.
    model = LanguageModel(build(config, torch.float32), byte_level_tokenizer(), name="mpt")
    same = [model.encoder.encode(f"{PREFIX}{end}") for end in ("?", "!")]
    assert len({len(text.ids) for text in same}) == 1
    for _ in range(2):
        assert shared_prefix.shared_prefix(model, same) is None
    assert len([warning for warning in recwarn if "cannot be reused" in str(warning.message)]) == 1


def test_a_prefix_that_changes_the_result_is_refused(monkeypatch):
    for owner, name, size in (
        (shared_prefix.SharedPrefix, "last_head_inputs", 2),
        (shared_prefix, "first_generated_logits", 3),
    ):
        correct = getattr(owner, name)
        model = language_model()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *a, f=correct, n=size: f(*a) * (1.1 if len(a) == n else 1.0))
            with pytest.warns(UserWarning, match="common prefix cannot be reused in tiny-llama"):
                assert shared_prefix.shared_prefix(model, encoded(model)) is None
            # A refusal is remembered, until the weights change.
            assert shared_prefix.shared_prefix(model, encoded(model)) is None
        model.weights_changed()
        assert shared_prefix.shared_prefix(model, encoded(model)) is not None


def test_in_context_edits_run_the_text_in_front_once(monkeypatch):
    model = language_model()
    requests = [EditRequest("The capital of France is", "Rome", "France"), EditRequest("Bread is", "blue", "Bread")]
    edits = ICE().edit_each_group(model, [[request] for request in requests])
    prompts, rows = ["Who?", "The city is", "Rome", "In which country"], [0, 1, 0, 1]
    built = []
    init = shared_prefix.SharedPrefix.__init__
    monkeypatch.setattr(shared_prefix.SharedPrefix, "__init__", lambda *a: built.append(len(a[2])) or init(*a))
    with edits.applied(model, rows) as edited:
        scores, texts = edited.score(prompts, TARGETS), edited.generate(prompts, 4)
    assert len(built) == 4  # for each edit, once for scores and once for generations
    monkeypatch.setattr(shared_prefix, "_MIN_TOKENS", 1000)
    with edits.applied(model, rows) as edited:
        expected, wanted = edited.score(prompts, TARGETS), edited.generate(prompts, 4)
        beams = edited.generate(prompts, 4, num_beams=2)
        uncached = edited.generate(prompts, 4, use_cache=False)
    assert len(built) == 4
    assert texts == wanted
    for score, one in zip(scores, expected, strict=True):
        assert score.log_probs == pytest.approx(one.log_probs, abs=1e-4)
    monkeypatch.setattr(shared_prefix, "_MIN_TOKENS", 4)
    with edits.applied(model, rows) as edited:
        assert edited.generate(prompts, 4, num_beams=2) == beams
        assert edited.generate(prompts, 4, use_cache=False) == uncached
