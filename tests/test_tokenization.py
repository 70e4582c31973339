import pytest
import torch
from transformers import ByT5Tokenizer

from lightning_edit.errors import ConfigurationError, TokenizationError
from lightning_edit.tokenization import PromptEncoder
from tests.tiny_models import byte_level_tokenizer, sentencepiece_tokenizer

TOKENIZERS = {
    "byte-level": lambda: byte_level_tokenizer(),
    "byte-level with BOS": lambda: byte_level_tokenizer(bos=True),
    "sentencepiece": lambda: sentencepiece_tokenizer(bos=False),
    "sentencepiece with BOS": lambda: sentencepiece_tokenizer(),
}
TEXTS = [
    ("The capital of France is", "Rome", "France"),
    ("What is the capital of Zürich? It is", "São Paulo", "Zürich"),
    ("Über naïve 東京, answer:", "東京", "東京"),
    ("The U.S. capital is", "Washington, D.C.", "U.S."),
    ("On which continent is Brazil?", "+33", "Brazil"),
    ("France", ".fr", "France"),
]


@pytest.fixture(params=TOKENIZERS, ids=list(TOKENIZERS))
def encoder(request):
    return PromptEncoder(TOKENIZERS[request.param]())


@pytest.mark.parametrize(("prompt", "target", "subject"), TEXTS)
def test_spans_are_exact(encoder, prompt, target, subject):
    start = prompt.rindex(subject)
    text = encoder.encode(prompt, target, (start, start + len(subject)))
    assert encoder.decode(text.target_ids).strip() == target
    assert encoder.decode(text.ids) == f"{prompt} {target}"
    # Everything before the target is what free generation starts from.
    assert text.ids[: text.target[0]] == encoder.encode(prompt).ids
    assert subject in encoder.decode(text.ids[slice(*text.subject)])
    smaller = text.ids[text.subject[0] + 1 : text.subject[1]], text.ids[text.subject[0] : text.subject[1] - 1]
    assert all(subject not in encoder.decode(ids) for ids in smaller)


def test_the_leading_space_belongs_to_the_target_once(encoder):
    plain = encoder.encode("The capital of France is", "Rome")
    assert encoder.encode("The capital of France is", " Rome").ids == plain.ids
    assert encoder.decode(plain.target_ids) in ("Rome", " Rome")
    assert "  " not in encoder.decode(plain.ids)


@pytest.mark.parametrize("name", ["byte-level with BOS", "sentencepiece with BOS"])
def test_a_beginning_token_is_at_the_beginning_only(name):
    text = PromptEncoder(TOKENIZERS[name]()).encode("The capital of France is", "Rome", (15, 21))
    assert text.ids[0] == 1
    assert 1 not in text.ids[1:]
    assert text.subject[0] > 0


def test_a_target_that_the_tokenizer_loses_is_an_error():
    encoder = PromptEncoder(byte_level_tokenizer())
    encoder.tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    with pytest.raises(
        TokenizationError, match="does not survive its tokenizer: its target 'Rome' comes back as ' rome'"
    ):
        encoder.encode("The capital of France is", "Rome")


def test_a_token_that_straddles_the_boundary_is_split():
    encoder = PromptEncoder(byte_level_tokenizer())
    # No space between prompt and target, as in a chat template that ends with a letter.
    encoder._separator = lambda text, target: ""
    text = encoder.encode("The cap", "ital of")
    assert text.ids[: text.target[0]] == encoder.encode("The cap").ids
    assert encoder.decode(text.target_ids) == "ital of"


def test_collate_pads_on_either_side(encoder):
    texts = [
        encoder.encode("The capital of France is", "Rome", (15, 21)),
        encoder.encode("France", "São Paulo", (0, 6)),
    ]
    for side in ("left", "right"):
        batch = encoder.collate(texts, side)
        for row, text in enumerate(texts):
            real = batch.attention_mask[row].bool()
            assert batch.input_ids[row][real].tolist() == list(text.ids)
            assert batch.input_ids[row][batch.target_mask[row]].tolist() == list(text.target_ids)
            assert batch.input_ids[row][batch.subject_mask[row]].tolist() == list(text.ids[slice(*text.subject)])
            assert batch.position_ids[row][real].tolist() == list(range(len(text.ids)))
            # What predicts a token stands one to its left.
            assert torch.equal(batch.answer_mask[row].nonzero() + 1, batch.target_mask[row].nonzero())
    assert batch.target_ids.tolist() == [id for text in texts for id in text.target_ids]
    assert batch.target_rows.tolist() == [row for row, text in enumerate(texts) for _ in text.target_ids]


def test_select_drops_columns_that_are_only_padding(encoder):
    texts = [encoder.encode("The capital of France is", "São Paulo"), encoder.encode("France", "Rome")]
    short = encoder.collate(texts).select(torch.tensor([1]))
    alone = encoder.collate(texts[1:])
    assert torch.equal(short.input_ids, alone.input_ids)
    assert torch.equal(short.target_mask, alone.target_mask)


def test_chat_template():
    tokenizer = byte_level_tokenizer()
    with pytest.raises(ConfigurationError, match="has no chat template"):
        PromptEncoder(tokenizer, chat_template=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    encoder = PromptEncoder(tokenizer, chat_template=True)
    text = encoder.encode("The capital of France is", "Rome", (15, 21))
    assert encoder.decode(text.target_ids) == "Rome"
    assert encoder.decode(text.ids[slice(*text.subject)]).strip() == "France"
    assert encoder.decode(text.ids).endswith("assistant\nRome")


def test_a_chat_template_that_changes_the_prompt_is_told_of():
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim }}</s>{% endfor %}"
    encoder = PromptEncoder(tokenizer, chat_template=True)
    assert encoder.encode("The capital of France is", "Rome", (15, 21)).subject is not None
    with pytest.raises(TokenizationError, match="take it off the prompt's ends"):
        encoder.encode("  The capital of France is", "Rome", (17, 23))


def test_a_slow_tokenizer_that_ends_every_text_puts_no_end_between_prompt_and_target():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    assert tokenizer("The capital of France is")["input_ids"][-1] == tokenizer.eos_token_id
    encoder = PromptEncoder(tokenizer)
    prompt, text = encoder.encode("The capital of France is"), encoder.encode("The capital of France is", "Rome")
    assert text.ids == tuple(byte + 3 for byte in b"The capital of France is Rome")
    assert text.target == (24, 29)
    assert prompt.ids == text.ids[:24]
    ended = encoder.with_end_token().encode("The capital of France is", "Rome")
    assert ended.ids == (*text.ids, tokenizer.eos_token_id)
    assert ended.target == (24, 30)
