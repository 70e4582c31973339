"""What is shown of an edit."""

import pytest

from lightning_edit.answers import edit_report
from lightning_edit.editors import MEMIT
from tests.testers import REQUESTS
from tests.tiny_models import language_model


@pytest.mark.parametrize(("weight", "mark", "failed"), [(1e12, "✗", 1), (1e-3, "✓", 0)])
def test_an_edit_on_an_identity_covariance_has_the_mark_of_what_it_does(weight, mark, failed):
    model = language_model("llama")
    search = {"steps": 25, "clamp_norm": 8.0, "weight_decay": 0.0, "kl_weight": 0.0, "contexts": [["{}"]]}
    edit = MEMIT(layers=[1], covariance="identity", covariance_weight=weight, **search).edit(model, REQUESTS[:1])
    report = edit_report(model, edit, REQUESTS[:1])
    _, before, after, probabilities, shown = report.rows[0]
    assert shown == mark
    assert len(report.failed) == failed
    assert (before == after) == bool(failed)
    first, last = (float(value) for value in probabilities.split(" → "))
    assert (first == last) == bool(failed)
