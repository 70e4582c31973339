"""Searched values that several editors share."""

import pytest
import torch

from lightning_edit.editors import EMMET, MEMIT, ROME, ContextSettings, ValueSettings, searched_values
from lightning_edit.editors.value_search import ValueResult
from lightning_edit.edits import EditSequence
from lightning_edit.errors import EditError
from lightning_edit.models import load_language_model
from tests.testers import REQUESTS
from tests.tiny_models import language_model

COMMON = {
    "layers": [1],
    "covariance": "identity",
    "contexts": ContextSettings([["{}"], ["Well. {}"]]),
    "search": ValueSettings(steps=4),
}


@pytest.fixture
def model():
    return language_model("llama")


def ready(editor, model):
    editor.setup(model)
    return editor


def factors(edit):
    return [(delta.a, delta.b) for delta in edit.weight_deltas().values()]


@pytest.fixture
def searches(monkeypatch):
    """How many requests were searched, call by call."""
    calls, search = [], searched_values.search_values

    def counted(model, requests, *rest):
        calls.append(len(requests))
        return search(model, requests, *rest)

    monkeypatch.setattr(searched_values, "search_values", counted)
    return calls


def test_an_edit_is_the_same_with_values_that_another_method_searched(model, tmp_path, searches):
    plain = ready(ROME(**COMMON, original_keys=True), model).edit(model, REQUESTS[:1])
    first, second = (ready(ROME(**COMMON, original_keys=original), model) for original in (False, True))
    for editor in (first, second):
        editor.share_searches(tmp_path)
    first.edit(model, REQUESTS[:1])
    edit = second.edit(model, REQUESTS[:1])
    assert searches == [1]
    assert first.reused_seconds == 0 < second.reused_seconds
    for (a, b), (expected_a, expected_b) in zip(factors(edit), factors(plain), strict=True):
        assert torch.equal(a, expected_a)
        assert torch.equal(b, expected_b)


def test_memit_and_emmet_share_and_only_new_requests_are_searched(model, tmp_path, searches):
    memit, emmet = (ready(kind(**COMMON), model) for kind in (MEMIT, EMMET))
    for editor in (memit, emmet):
        editor.share_searches(tmp_path)
    memit.edit_each(model, REQUESTS[:2])
    emmet.edit_each(model, REQUESTS[:3])
    assert searches == [2, 1]


@pytest.mark.parametrize(
    "changed",
    [
        {"search": ValueSettings(steps=3)},
        {"search": ValueSettings(steps=4, weight_decay=0.1)},
        {"contexts": ContextSettings([["{}"]])},
        {"layers": [2]},
    ],
)
def test_another_search_is_not_taken_for_the_same(changed, model, tmp_path, searches):
    for settings in (COMMON, COMMON | changed):
        editor = ready(ROME(**settings), model)
        editor.share_searches(tmp_path)
        editor.edit(model, REQUESTS[:1])
    assert searches == [1, 1]


def test_values_on_top_of_other_edits_are_searched_anew(model, tmp_path, searches):
    editor = ready(MEMIT(**COMMON), model)
    editor.share_searches(tmp_path)
    first = editor.edit(model, REQUESTS[:1])
    editor.edit(model, REQUESTS[1:2], after=EditSequence().then(first))
    assert searches == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_file_is_searched_again(model, tmp_path, searches):
    for _ in range(2):
        editor = ready(ROME(**COMMON), model)
        editor.share_searches(tmp_path)
        editor.edit(model, REQUESTS[:1])
        [file] = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:40])
    assert searches == [1, 1]


def test_a_search_that_failed_is_not_kept(model, tmp_path, monkeypatch):
    failed = ValueResult({}, {}, [float("nan")], "the loss became nan")
    monkeypatch.setattr(searched_values, "search_values", lambda *arguments: [failed])
    editor = ready(ROME(**COMMON), model)
    editor.share_searches(tmp_path)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(EditError, match="the loss became nan"):
        editor.edit(model, REQUESTS[:1])
    assert not list(tmp_path.iterdir())


def test_another_precision_of_the_model_has_other_values(tiny_folder, tmp_path, searches):
    for dtype in ("float32", "float64"):
        model = load_language_model(str(tiny_folder), dtype=dtype)
        editor = ready(ROME(**COMMON), model)
        editor.share_searches(tmp_path)
        editor.edit(model, REQUESTS[:1])
    assert searches == [1, 1]
