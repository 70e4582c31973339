import pytest
import torch

from lightning_edit.errors import ConfigurationError
from lightning_edit.tokenization import PromptEncoder
from tests.tiny_models import FAMILIES, build, language_model

PROMPTS = ["The capital of France is", "What is the capital of Germany? It is", "On which continent is Brazil?"]
TARGETS = ["Paris", "Berlin the city", "South America"]


def brute_force_log_probs(model, prompt, target):
    """Token by token, each text alone, with the full logits of the model's own forward."""
    text = model.encoder.encode(prompt, target)
    logits = model.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    return [float(logits[position - 1, text.ids[position]]) for position in range(*text.target)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_score_equals_full_logits_one_text_at_a_time(family):
    model = language_model(family)
    for score, prompt, target in zip(model.score(PROMPTS, TARGETS), PROMPTS, TARGETS, strict=True):
        expected = brute_force_log_probs(model, prompt, target)
        torch.testing.assert_close(list(score.log_probs), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_and_right_padding_agree(family):
    model = language_model(family)
    texts = [model.encoder.encode(prompt, target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    right = model.encoder.collate(texts, "right")
    left = model.encoder.collate(texts, "left")
    torch.testing.assert_close(model.answer_logits(left), model.answer_logits(right), rtol=1e-4, atol=5e-4)


def test_divergence_from_itself_is_zero_and_from_another_model_is_that_of_the_full_logits():
    model, other = language_model("gemma2"), language_model("gemma2")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    kept = [score.head_input for score in model.score(PROMPTS, TARGETS, keep_head_input=True)]
    for score in model.score(PROMPTS, TARGETS, references=kept):
        assert score.divergence == pytest.approx(0, abs=1e-6)
    # The head is replayed with the scoring model's own weights, so only what lies below it may differ.
    other.model.lm_head.weight.data.copy_(model.model.lm_head.weight.data)
    for score, prompt, target in zip(other.score(PROMPTS, TARGETS, references=kept), PROMPTS, TARGETS, strict=True):
        text = model.encoder.encode(prompt, target)
        ids, positions = torch.tensor([text.ids]), torch.arange(*text.target) - 1
        before = model.model(ids).logits[0, positions].log_softmax(-1)
        after = other.model(ids).logits[0, positions].log_softmax(-1)
        expected = (before.exp() * (before - after)).sum(-1).mean()
        assert score.divergence == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


def test_greedy_generation_equals_repeated_argmax():
    model = language_model("llama")
    for prompt, text in zip(PROMPTS, model.generate(PROMPTS, max_new_tokens=[3, 5, 4]), strict=True):
        ids = list(model.encoder.encode(prompt).ids)
        new = []
        for _ in range({0: 3, 1: 5, 2: 4}[PROMPTS.index(prompt)]):
            new.append(int(model.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == 2:
                break
        assert text == model.encoder.decode(new)


def test_generation_ignores_sampling_defaults_of_the_model():
    model = language_model("llama")
    model.model.generation_config.do_sample = True
    model.model.generation_config.temperature = 5.0
    assert model.generate(PROMPTS, 6) == model.generate(PROMPTS, 6)


def test_the_model_is_frozen_and_in_eval_mode():
    model = build(FAMILIES["gpt2"][0]()).train()
    from lightning_edit.models import LanguageModel
    from tests.tiny_models import byte_level_tokenizer

    held = LanguageModel(model, byte_level_tokenizer())
    assert not held.model.training
    assert not any(parameter.requires_grad for parameter in held.model.parameters())


def test_inference_mode_is_refused():
    from lightning_edit.models.capture import capture_factors

    model = language_model("llama")
    batch = model.encoder.collate([model.encoder.encode("The capital of France is", "Rome")])
    with torch.inference_mode(), pytest.raises(ConfigurationError, match="inference_mode=False"):
        capture_factors(model, batch, model.layer_map.sites([1]))


def test_encoder_is_shared_with_the_model():
    assert isinstance(language_model("llama").encoder, PromptEncoder)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_padding_beyond_a_sliding_window_is_harmless(family):
    model = language_model(family)
    long = "The capital of France is a city and " * 4 + "its name is"
    together = model.score([PROMPTS[0], long], ["Paris", "Paris"])[0]
    [alone] = model.score(PROMPTS[:1], ["Paris"])
    torch.testing.assert_close(together.log_probs, alone.log_probs, rtol=1e-4, atol=2e-4)


PUBLISHED = [
    {"max_time": 1e-9},
    {"repetition_penalty": 5.0},
    {"num_beams": 3},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(3, 400))},
    {"bad_words_ids": [[token] for token in range(3, 400)]},
    {"forced_eos_token_id": 2},
]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: next(iter(published)))
def test_published_generation_settings_change_neither_greedy_decoding_nor_samples(published):
    model, starts = language_model("llama"), torch.full((3, 1), 5)

    def outputs():
        torch.manual_seed(0)
        return model.generate(PROMPTS, 8), model.sample(starts, 12).tolist()

    expected = outputs()
    assert {len(sample) for sample in expected[1]} == {12}
    model.model.generation_config.update(**published)
    assert outputs() == expected
    assert getattr(model.model.generation_config, next(iter(published))) == next(iter(published.values()))
