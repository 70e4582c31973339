"""The report that the edit command prints."""

import pytest

from lightning_edit.answers import edit_report
from lightning_edit.editors import MEMIT, ContextSettings, FineTuning, TuningSettings, ValueSettings
from tests.testers import REQUESTS
from tests.tiny_models import language_model


@pytest.mark.parametrize("weight", [15000.0, 1e9])
def test_an_edit_on_an_identity_covariance_that_changes_nothing_has_a_cross(weight):
    model = language_model("llama")
    search = {"search": ValueSettings(steps=4), "contexts": ContextSettings([["{}"]])}
    edit = MEMIT(layers=[1], covariance="identity", covariance_weight=weight, **search).edit(model, REQUESTS[:1])
    assert any(delta.dense().any() for delta in edit.deltas.values())
    report = edit_report(model, edit, REQUESTS[:1])
    _, before, after, probabilities, mark = report.rows[0]
    assert mark == "✗"
    assert report.failed == REQUESTS[:1]
    assert before == after
    first, last = probabilities.split(" → ")
    assert first == last
    assert [row[-1] for row in report.rows[1:]] == ["unchanged", "unchanged"]


def test_an_edit_whose_target_is_said_has_a_check_mark():
    model = language_model("llama")
    tuning = TuningSettings(steps=20, learning_rate=5e-2, end_token=True)
    edit = FineTuning(sites=[-2, -1], tuning=tuning).edit(model, REQUESTS[:1])
    report = edit_report(model, edit, REQUESTS[:1])
    assert report.rows[0][2].strip() == "Rome"
    assert report.rows[0][-1] == "✓"
    assert not report.failed
