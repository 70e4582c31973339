"""Statistics that come with the package: in half precision, and only for the model that they belong to."""

import pytest
import torch

from lightning_edit.editors import ROME
from lightning_edit.errors import ConfigurationError, EditorNotFittedError
from lightning_edit.models import shipped_statistics as module
from lightning_edit.models.shipped_statistics import shipped_statistics
from lightning_edit.models.statistics import KeyStatistics
from lightning_edit.shipped import checkpoints_folder
from tests.editors.locating import SEARCH, statistics_of
from tests.testers import REQUESTS
from tests.tiny_models import language_model


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped checkpoints with packed statistics of the tiny Llama."""
    monkeypatch.setattr(module, "checkpoints_folder", lambda: tmp_path)
    monkeypatch.setenv("LIGHTNING_EDIT_CACHE", str(tmp_path / "cache"))
    statistics = statistics_of(language_model("llama"))
    statistics.save(tmp_path / "tiny", packed=True)
    return statistics


def test_packed_statistics_come_back_at_a_quarter_of_the_size(tmp_path):
    statistics = statistics_of(language_model("llama"))
    sizes = []
    for packed in (False, True):
        folder = statistics.save(tmp_path / str(packed), packed=packed)
        sizes.append((folder / "statistics.safetensors").stat().st_size)
        loaded = KeyStatistics.load(folder)
        assert (loaded.corpus, loaded.moments.keys()) == (statistics.corpus, statistics.moments.keys())
        for site, moment in statistics.moments.items():
            keys = torch.linalg.cholesky(moment.double()) @ torch.randn(len(moment), 8, dtype=torch.float64)
            expected = statistics.inverse_times(site, keys)
            difference = (loaded.inverse_times(site, keys) - expected).norm() / expected.norm()
            assert float(difference) < (2e-2 if packed else 1e-9)
    assert sizes[1] < 0.35 * sizes[0]


def test_a_moment_without_full_rank_is_not_packed(tmp_path):
    statistics = statistics_of(language_model("llama"))
    statistics.moments = {site: torch.ones_like(moment) for site, moment in statistics.moments.items()}
    with pytest.raises(
        EditorNotFittedError, match=r"statistics of model.* cannot be packed: the moment is not positive"
    ):
        statistics.save(tmp_path / "packed", packed=True)
    assert not (tmp_path / "packed").exists()


def test_shipped_statistics_are_used_for_their_model(shipped):
    model = language_model("llama")
    statistics = shipped_statistics(model, [1])
    assert statistics is not None
    assert statistics.corpus == shipped.corpus
    assert shipped_statistics(language_model("gpt2"), [1]) is None
    assert shipped_statistics(model, range(len(model.layer_map))) is not None
    shipped.moments = dict(list(shipped.moments.items())[:1])
    shipped.save(module.checkpoints_folder() / "tiny", packed=True)
    assert shipped_statistics(model, [1]) is None


def test_an_editor_takes_them_before_it_samples_text(shipped, monkeypatch):
    from lightning_edit.editors import locate

    monkeypatch.setattr(locate, "sampled_statistics", None)
    model = language_model("llama")
    editor = ROME(layers=[1], statistics="none", **SEARCH)
    editor.fit_without_corpus(model)
    assert editor.edit(model, REQUESTS[:1]).provenance.findings["corpus"]["name"] == shipped.corpus.name


def test_damaged_ones_are_an_error(shipped):
    file = module.checkpoints_folder() / "tiny" / "statistics.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigurationError, match="broken statistics"):
        shipped_statistics(language_model("llama"), [1])


def test_the_shipped_ones_are_whole_and_serve_the_bundled_model(smollm2):
    [manifest] = checkpoints_folder().glob("*/statistics.json")
    statistics = KeyStatistics.load(manifest.parent)
    assert sorted(statistics.moments) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(4, 10)]
    for site in statistics.moments:
        statistics.require(site)
    assert shipped_statistics(smollm2, range(4, 10)) is not None
    assert shipped_statistics(smollm2, [10]) is None
