import pytest
import torch

from lightning_edit.editors import MALMEN, MEND
from lightning_edit.editors.factor_cache import FactorCache
from lightning_edit.models.trunk import Trunk
from tests.testers import REQUESTS
from tests.tiny_models import FAMILIES, language_model


def texts_of(model):
    return [model.encoder.encode(request.prompt, request.target) for request in REQUESTS]


def sorted_rows(chunk):
    """The factors of a store, in an order that does not depend on how they were computed."""
    rows = torch.cat([chunk.group[:, None].float(), chunk.x, chunk.delta], dim=1)
    return torch.stack(sorted(rows, key=lambda row: row[:9].tolist()))


@pytest.mark.parametrize("editor", [MEND(sites=[1, 2], rank=4), MALMEN(sites=[1, 2], rank=4)], ids=["MEND", "MALMEN"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_factors_are_those_that_would_be_computed(editor, family):
    model = language_model(family)
    batch = model.encoder.collate(texts_of(model))
    groups, names = torch.tensor([0, 1, 0]), ["a", "b", "c"]
    cache = FactorCache(2**30)
    trunk = Trunk(model, 1)
    cache.fill(model, texts_of(model), editor.edit_sites(model), trunk, editor.tokens == "answer")
    assert len(cache) == 3
    kept = editor.collect(model, batch, groups, names, trunk, cache)
    expected = editor.collect(model, batch, groups, names)
    for site in expected.sites:
        torch.testing.assert_close(
            sorted_rows(kept.whole(site)), sorted_rows(expected.whole(site)), rtol=1e-3, atol=1e-5
        )


def test_nothing_is_computed_for_requests_that_are_kept(monkeypatch):
    model, editor = language_model("llama"), MEND(sites=[1, 2], rank=4)
    cache = FactorCache(2**30)
    cache.fill(model, texts_of(model)[:2], editor.edit_sites(model))
    asked = []
    monkeypatch.setattr(editor, "_factors", lambda *args: asked.append(args[2]) or pytest.fail("computed"))
    batch = model.encoder.collate(texts_of(model)[:2])
    editor.collect(model, batch, torch.tensor([0, 1]), ["a", "b"], None, cache)
    with pytest.raises(pytest.fail.Exception):
        editor.collect(model, model.encoder.collate(texts_of(model)), torch.arange(3), ["a", "b", "c"], None, cache)
    assert asked == [["a", "b", "c"]]


def test_the_same_requests_in_any_order_give_the_same_bits():
    model, editor = language_model("llama"), MEND(sites=[1], rank=4)
    caches = [FactorCache(2**30), FactorCache(2**30)]
    for cache, texts in zip(caches, (texts_of(model), texts_of(model)[::-1]), strict=True):
        cache.fill(model, texts, editor.edit_sites(model))
    batch = model.encoder.collate(texts_of(model))
    (site,) = caches[0].get(batch)
    for part in ("x", "delta", "rows"):
        first, second = (getattr(cache.get(batch)[site], part) for cache in caches)
        assert torch.equal(first, second)


def test_a_limit_keeps_memory_bounded():
    model, editor = language_model("llama"), MEND(sites=[1], rank=4)
    cache = FactorCache(1)
    cache.fill(model, texts_of(model), editor.edit_sites(model))
    assert len(cache) == cache.bytes == 0
    assert cache.get(model.encoder.collate(texts_of(model))) is None
