"""Requests of one edit that want different answers to the same prompt."""

from dataclasses import replace

import pytest

from lightning_edit.editors import MALMEN, MEND, SERAC, GradientStep
from lightning_edit.errors import EditError
from tests.testers import REQUESTS
from tests.tiny_models import language_model

EDITORS = {
    "MEND": lambda: MEND(sites=[1], rank=4),
    "MALMEN": lambda: MALMEN(sites=[1], rank=4),
    "GradientStep": lambda: GradientStep(sites=[1]),
    "SERAC": lambda: SERAC(rank=4, adapted_layers=1),
}
CONTRADICTING = [REQUESTS[0], REQUESTS[1], replace(REQUESTS[0], target="Oslo", id="later")]
CONTRADICTION = "1 requests contradict later ones of the same edit ('france'); "


def build_editor(name, model):
    editor = EDITORS[name]()
    editor.setup(model)
    if name in ("MEND", "MALMEN"):
        editor.train()
        editor.edit(model, REQUESTS)
    return editor.eval()


@pytest.mark.parametrize("name", EDITORS)
def test_contradicting_requests_are_told_of(name, recwarn):
    model = language_model("llama")
    editor = build_editor(name, model)
    editor.edit(model, REQUESTS)
    editor.edit_each(model, CONTRADICTING)
    assert not [warning for warning in recwarn if "contradict" in str(warning.message)]
    recwarn.clear()
    edit = editor.edit(model, CONTRADICTING)
    [message] = [str(warning.message) for warning in recwarn if "contradict" in str(warning.message)]
    if name == "SERAC":
        assert message == f"{CONTRADICTION}the last ones win, and 1 are left out (editor.contradictions)"
        assert [request.target for request in edit.provenance.requests] == ["Paris the city", "Oslo"]
    else:
        assert message == f"{CONTRADICTION}all are tried (editor.contradictions)"
        assert [request.target for request in edit.provenance.requests] == ["Rome", "Paris the city", "Oslo"]


@pytest.mark.parametrize("name", EDITORS)
def test_contradicting_requests_can_be_refused(name):
    model = language_model("llama")
    editor = build_editor(name, model)
    editor.contradictions = "error"
    with pytest.raises(EditError, match=r"'france': .* is to be answered 'Rome' and 'Oslo'"):
        editor.edit(model, CONTRADICTING)
