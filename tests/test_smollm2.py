"""The real SmolLM2-135M-Instruct."""

from pathlib import Path

import pytest
import torch

from lightning_edit.editors import GradientStep, load_editor
from lightning_edit.errors import SourceNotFoundError
from lightning_edit.models import load_language_model
from lightning_edit.records import EditRequest
from tests.testers import assert_untouched, state

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
pytestmark = pytest.mark.smollm2
REQUEST = EditRequest("The capital of France is", "Rome", "France", "Paris")


def test_knows_the_capital_of_france(smollm2):
    assert smollm2.generate(["The capital of France is"], 2)[0].startswith(" Paris")
    assert smollm2.layer_map.site(-1).name == "model.layers.29.mlp.down_proj"


def test_says_the_new_fact_edited_and_merged_into_bfloat16(smollm2):
    before = state(smollm2)
    edit = GradientStep(sites=[24, 25, 26, 27, 28], step_size=0.05).edit(smollm2, [REQUEST])
    with edit.applied(smollm2) as edited:
        assert edited.generate([REQUEST.prompt], 2)[0].startswith(" Rome")
    assert_untouched(smollm2, before)
    half = load_language_model("smollm2-135m-instruct", dtype="bfloat16")
    with pytest.warns(UserWarning, match="another precision"), edit.applied(half) as edited:
        assert edited.generate([REQUEST.prompt], 2)[0].startswith(" Rome")
    with pytest.warns(UserWarning, match="another precision"):
        edit.merge(half)
    assert half.generate([REQUEST.prompt], 2)[0].startswith(" Rome")
    assert half.model.dtype is torch.bfloat16


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*.ckpt")), ids=lambda path: path.stem)
def test_a_shipped_editor_says_the_new_fact_at_once(smollm2, path):
    assert path.stat().st_size <= 10e6
    request = EditRequest("What city was Marie Curie born in?", "Berlin", "Marie Curie")
    editor = load_editor(path, smollm2)
    assert not smollm2.generate([request.prompt], 6)[0].startswith(" Berlin")
    with editor.edit(smollm2, [request]).applied(smollm2) as edited:
        assert edited.generate([request.prompt], 6)[0].startswith(" Berlin")


def test_a_model_that_is_nowhere_says_what_to_pass():
    with pytest.raises(SourceNotFoundError, match=r"nor reachable on the Hub.*smollm2-135m-instruct"):
        load_language_model("owner/no-such-model")
    with pytest.raises(SourceNotFoundError, match="no such GGUF file"):
        load_language_model("nowhere.gguf")
