"""Edited models that transformers can call."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, pipeline

from lightning_edit.editors import GRACE, ICE, GradientStep, TuningSettings
from lightning_edit.edits import EditSequence
from lightning_edit.errors import BaseModelMismatchError, EditError
from lightning_edit.models import load_language_model
from tests.testers import PROBES, REQUESTS, assert_untouched, state
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model

PROMPTS = [*PROBES, REQUESTS[0].prompt]


def _grace(model):
    return GRACE(site=-2, radius=0.5, tuning=TuningSettings(12, 0.5, skip_below=0, stop_below=0))


EDITORS = {"weights": lambda model: GradientStep([1, 2], 0.5), "text": lambda model: ICE(), "codebook": _grace}


def _batch(model, prompts, side):
    batch = model.encoder.collate([model.encoder.encode(prompt) for prompt in prompts], padding_side=side)
    return batch.input_ids, batch.attention_mask


def _edited(editor):
    model = language_model("llama")
    return model, EDITORS[editor](model).edit(model, REQUESTS[:1])


@pytest.mark.parametrize("editor", EDITORS)
def test_generate_says_what_the_edited_model_says(editor):
    model, edit = _edited(editor)
    before = state(model)
    with edit.applied(model) as scorer:
        expected = scorer.generate(PROMPTS, 6)
    assert expected != model.generate(PROMPTS, 6)
    ids, mask = _batch(model, PROMPTS, "left")
    output = edit.as_hf(model).generate(ids, attention_mask=mask, max_new_tokens=6)
    assert torch.equal(output[:, : ids.shape[1]], ids)
    assert [model.encoder.decode(row[ids.shape[1] :].tolist()) for row in output] == expected
    assert_untouched(model, before)


@pytest.mark.parametrize("editor", EDITORS)
def test_generation_is_greedy_whatever_the_model_was_published_with(editor):
    model, edit = _edited(editor)
    with edit.applied(model) as scorer:
        expected = scorer.generate(PROMPTS[:1], 6)
    model.model.generation_config.update(do_sample=True, temperature=50.0)
    ids, mask = _batch(model, PROMPTS[:1], "left")
    output = edit.as_hf(model).generate(ids, attention_mask=mask, max_new_tokens=6)
    assert [model.encoder.decode(output[0, ids.shape[1] :].tolist())] == expected


def test_settings_that_a_routed_edit_would_ignore_are_refused():
    model, edit = _edited("text")
    ids, mask = _batch(model, PROMPTS[:1], "left")
    with pytest.raises(EditError, match="a routed edit has no setting repetition_penalty; it has max_new_tokens"):
        edit.as_hf(model).generate(ids, attention_mask=mask, max_new_tokens=2, repetition_penalty=1.5)
    config = GenerationConfig(num_return_sequences=2, num_beams=2)
    with pytest.raises(EditError, match="no setting num_return_sequences"):
        edit.as_hf(model).generate(ids, attention_mask=mask, generation_config=config)


@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_the_edited_model(editor, side):
    model, edit = _edited(editor)
    answers = ["Rome", "the Yen", "no", "Rome"]
    texts = [model.encoder.encode(prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    batch = model.encoder.collate(texts, padding_side=side)
    lengths = torch.tensor([text.target[0] for text in texts])
    logits = edit.as_hf(model)(batch.input_ids, batch.attention_mask, prompt_lengths=lengths).logits
    with edit.applied(model) as scorer:
        scores = scorer.score(PROMPTS, answers)
    for row, (text, score) in enumerate(zip(texts, scores, strict=True)):
        kept = batch.attention_mask[row].nonzero()[:, 0]
        places = kept[text.target[0] - 1 : text.target[1] - 1]
        log_probs = logits[row, places].log_softmax(-1).gather(1, torch.tensor(text.target_ids)[:, None])[:, 0]
        torch.testing.assert_close(log_probs, torch.tensor(score.log_probs), rtol=1e-4, atol=1e-4)


def test_the_whole_row_is_the_prompt_by_default():
    model, edit = _edited("text")
    ids, mask = _batch(model, PROMPTS, "left")
    logits = edit.as_hf(model)(ids, mask).logits
    first = [model.encoder.decode([token]) for token in logits[:, -1].argmax(-1).tolist()]
    with edit.applied(model) as scorer:
        assert first == scorer.generate(PROMPTS, 1)
    # Positions before the last one have the base model's logits.
    torch.testing.assert_close(logits[:, -2], model.model(input_ids=ids, attention_mask=mask).logits[:, -2])


def test_the_loss_is_that_of_the_edited_model():
    model, edit = _edited("weights")
    ids, _ = _batch(model, PROMPTS[:1], "right")
    output = edit.as_hf(model)(ids, labels=ids)
    with edit.applied(model):
        expected = model.model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("editor", ["weights", "text"])
def test_a_pipeline_runs(editor):
    model, edit = _edited(editor)
    generate = pipeline("text-generation", model=edit.as_hf(model), tokenizer=model.tokenizer, device="cpu")
    config = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0)
    [generated] = generate(REQUESTS[0].prompt, generation_config=config, return_full_text=False)
    with edit.applied(model) as scorer:
        assert generated["generated_text"] == scorer.generate([REQUESTS[0].prompt], 4)[0]


def test_a_sequence_of_both_kinds():
    model = language_model("llama")
    first = GradientStep([1, 2], 0.5).edit(model, REQUESTS[:1])
    sequence = EditSequence([first, ICE().edit(model, REQUESTS[1:2])])
    with sequence.applied(model) as scorer:
        expected = scorer.generate(PROMPTS, 4)
    ids, mask = _batch(model, PROMPTS, "left")
    output = sequence.as_hf(model).generate(ids, attention_mask=mask, max_new_tokens=4)
    assert [model.encoder.decode(row[ids.shape[1] :].tolist()) for row in output] == expected


def test_unsupported_models_are_errors(tmp_path):
    _, edit = _edited("text")
    with pytest.raises(BaseModelMismatchError):
        edit.as_hf(language_model("gpt2"))
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}<a>"
    build(FAMILIES["llama"][0]()).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EditError, match="chat template"):
        edit.as_hf(load_language_model(str(tmp_path), chat_template=True))
