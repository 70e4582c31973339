"""The tiny GPT-2 on which the authors' code of several methods was run."""

import json
from typing import Any

import transformers
from tokenizers import Tokenizer

from lightning_edit.models import LanguageModel
from tests.editors.test_mend_golden import GOLDEN, double


def golden_values(name: str) -> dict[str, Any]:
    """Reads a file of tests/golden."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_model(end_token: str | None = None) -> LanguageModel:
    """The GPT-2 of locate.json in float64; ``end_token`` is a word of its tokenizer that ends texts."""
    golden = golden_values("locate")
    config = transformers.GPT2Config(**golden["config"], attn_implementation="eager")
    base = transformers.GPT2LMHeadModel(config).double()
    base.load_state_dict({name: double(values) for name, values in golden["state_dict"].items()}, strict=False)
    base.tie_weights()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(golden["tokenizer"])), pad_token="[PAD]", unk_token="[UNK]"
    )
    if end_token is not None:
        tokenizer.add_special_tokens({"eos_token": end_token})
    return LanguageModel(base, tokenizer)
