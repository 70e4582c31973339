"""How editors use the statistics that they are given."""

import pytest
import torch

from lightning_edit.editors import EMMET, MEMIT, PMET, ROME, AlphaEdit
from lightning_edit.errors import (
    ConfigurationError,
    EditorNotFittedError,
    NonFiniteError,
)
from lightning_edit.models.statistics import Corpus, IdentityStatistics, KeyStatistics
from tests.editors.locating import CONTEXTS, SEARCH, ready, statistics_of
from tests.testers import REQUESTS
from tests.tiny_models import language_model


@pytest.mark.parametrize("kind", [ROME, MEMIT, EMMET, PMET])
def test_statistics_that_cannot_be_inverted_are_refused_before_any_computation(kind, monkeypatch):
    from lightning_edit.editors import locate

    monkeypatch.setattr(locate, "search_values", None)
    monkeypatch.setattr(locate, "sampled_contexts", None)
    model = language_model("llama")
    poor = statistics_of(model)
    poor.moments = {site: moment[:, :1] @ moment[:1] for site, moment in poor.moments.items()}
    editor = kind(layers=[1])
    editor.use_statistics(poor)
    with pytest.raises(EditorNotFittedError, match="not of full rank: the text is too short or says too much of the"):
        editor.edit(model, REQUESTS[:1])


def test_an_identity_covariance_is_written_into_the_edit():
    model = language_model("llama")
    edit = ROME(layers=[1], covariance="identity", **SEARCH).edit(model, REQUESTS[:1])
    assert edit.provenance.settings["covariance"] == "identity"
    assert edit.provenance.findings["contexts"] == CONTEXTS
    with pytest.raises(EditorNotFittedError, match="second moment"):
        AlphaEdit(layers=[1], covariance="identity", **SEARCH).edit(model, REQUESTS[:1])


def test_statistics_are_loaded_from_a_file(tmp_path):
    model = language_model("llama")
    statistics = statistics_of(model)
    loaded = KeyStatistics.load(statistics.save(tmp_path / "statistics"))
    assert loaded.corpus == statistics.corpus
    assert all(torch.equal(loaded.moments[site], moment) for site, moment in statistics.moments.items())
    editor = ROME(layers=[1], statistics=str(tmp_path / "statistics"), **SEARCH)
    editor.edit(model, REQUESTS[:1])
    (tmp_path / "statistics" / "statistics.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigurationError, match="broken statistics"):
        ROME(layers=[1], statistics=str(tmp_path / "statistics"), **SEARCH).edit(model, REQUESTS[:1])


def test_a_moment_is_factorised_once(monkeypatch):
    model, factorised = language_model("llama"), []
    factorise = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda moment: factorised.append(moment) or factorise(moment))
    editor = ready(MEMIT(layers=[0, 1], **SEARCH), model)
    for request in REQUESTS:
        editor.edit(model, [request])
    assert [moment.dtype for moment in factorised] == [torch.float64] * 2


def test_the_statistics_in_use_determine_the_recorded_covariance():
    model = language_model("llama")
    editor = ROME(layers=[1], **SEARCH)
    editor.use_statistics(IdentityStatistics())
    provenance = editor.edit(model, REQUESTS[:1]).provenance
    assert provenance.settings["covariance"] == "identity"
    assert editor.could_have_produced(provenance, REQUESTS[:1])
    editor.use_statistics(statistics_of(model))
    assert editor.edit(model, REQUESTS[:1]).provenance.settings["covariance"] == "fitted"
    assert not editor.could_have_produced(provenance, REQUESTS[:1])


def test_statistics_that_are_not_finite_are_refused():
    model = language_model("llama")
    moments = statistics_of(model).moments
    next(iter(moments.values()))[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite"):
        KeyStatistics(moments, Corpus("texts", 8, 1000, ""), model.name, model.fingerprint)
