"""Saved edits are used with prompts in the form in which they were made."""

import pytest

from lightning_edit.cli import main
from lightning_edit.editors import GradientStep
from lightning_edit.edits import load_edit
from lightning_edit.models import load_language_model
from tests.testers import REQUESTS
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer

PROMPTS = ["Answer:", "The capital of France is"]


@pytest.fixture
def chat_folder(tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}<a>"
    build(FAMILIES["llama"][0]()).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.filterwarnings("ignore:the edit was made with the chat template")
@pytest.mark.parametrize(("options", "rendered"), [([], True), (["--chat_template", "false"], False)])
def test_generate_renders_prompts_as_the_edit_was_made_unless_told_otherwise(
    chat_folder, tmp_path, monkeypatch, options, rendered
):
    chat = load_language_model(chat_folder, chat_template=True)
    saved = GradientStep([1, 2], 0.5).edit(chat, REQUESTS[:1]).save(tmp_path / "edit")
    shown = []
    monkeypatch.setattr("lightning_edit.answers.print_answers", lambda rows, titles: shown.extend(rows))
    command = ["generate", "--edits", str(saved), "--max_new_tokens", "6", *options]
    assert main([*command, *(word for prompt in PROMPTS for word in ("--prompts", prompt))]) == 0
    model = load_language_model(chat_folder)
    texts = [f"<u>{prompt}</u><a>" if rendered else prompt for prompt in PROMPTS]
    before = model.generate(texts, 6)
    with load_edit(saved).applied(model) as edited:
        after = edited.generate(texts, 6)
    assert shown == [list(row) for row in zip(PROMPTS, before, after, strict=True)]
    assert before != after
    assert model.generate(PROMPTS, 6) != chat.generate(PROMPTS, 6)
