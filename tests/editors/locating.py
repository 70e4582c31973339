"""Locate-then-edit editors of tiny models, ready with statistics."""

import torch

from lightning_edit.editors import ContextSettings, ValueSettings
from lightning_edit.models.recording import Tap, record
from lightning_edit.models.statistics import Corpus, KeyStatistics

CONTEXTS = [["{}"], ["Well. {}", "The answer. {}"]]


SEARCH = {"search": ValueSettings(steps=8), "contexts": ContextSettings(CONTEXTS)}


def statistics_of(model, layers=(0, 1, 2), scale=1.0):
    """Second moments of the keys of some texts, with a floor that makes them invertible."""
    sites = [model.layer_map.site(layer) for layer in layers]
    texts = [model.encoder.encode(f"Text number {number} of several") for number in range(12)]
    positions = [len(text.ids) - 1 for text in texts]
    seen = record(model, texts, positions, {site.name: Tap(site.module, "input", site.layer) for site in sites})
    moments = {
        name: scale * (keys.T.double() @ keys.double() / len(keys) + 1e-3 * torch.eye(keys.shape[1]).double())
        for name, keys in seen.items()
    }
    return KeyStatistics(moments, Corpus("texts", 8, 1000, ""), model.name, model.fingerprint)


def ready(editor, model, **settings):
    editor.use_statistics(statistics_of(model, **settings))
    return editor
