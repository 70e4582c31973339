"""How far an edit at the last token reaches other prompts: with raw keys, normalised as in MEND, and whitened.

python -m benchmarks.whitened_keys [--directions K …]

For MEND's sites of SmolLM2-135M-Instruct (the last six MLP output projections) and WorldFacts' held-out records: the
share k'·W'Wk / k·W'Wk of an update made for a prompt's last token (k) that reaches another prompt's (k'), averaged over
the sites; its mean over records, and how often a rephrase gets more of it than a prompt that should stay as it is. The
whitening is fitted on training records, which have other subjects.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.environment import write_result
from lightning_edit.data import WorldFacts
from lightning_edit.editors.whitening import KeyWhitening, answering_key_moments
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.models.recording import Tap, record
from lightning_edit.records import EditRecord, ProbeKind

LAYERS = [-6, -5, -4, -3, -2, -1]
GROUPS = ("Same_Relation", "Same_Subject", "Unrelated")
Keys = dict[str, Tensor]


def prompts_of(records: list[EditRecord]) -> dict[str, list[str]]:
    """The edited prompt, a rephrase, and a prompt of each locality group, of the records that have all of them."""
    prompts: dict[str, list[str]] = {name: [] for name in ("edited", "rephrase", *GROUPS)}
    for one in records:
        groups = {probe.group: probe.prompt for probe in one.probes_of(ProbeKind.LOCALITY)}
        if set(groups) >= set(GROUPS):
            prompts["edited"].append(one.requests[0].prompt)
            prompts["rephrase"].append(one.probes_of(ProbeKind.GENERALIZATION)[0].prompt)
            for group in GROUPS:
                prompts[group].append(groups[group])
    return prompts


def last_keys(model: LanguageModel, prompts: list[str]) -> Keys:
    """Site name to its inputs (N, M) at the last token of each prompt."""
    texts = [model.encoder.encode(prompt) for prompt in prompts]
    taps = {site.name: Tap(site.module, "input", site.layer) for site in model.layer_map.sites(LAYERS)}
    return record(model, texts, [len(text.ids) - 1 for text in texts], taps)


def reach(keys: dict[str, Keys], mapped: Callable[[str, Tensor], Tensor]) -> dict[str, float]:
    """Mean shares, and how often a rephrase's is larger than that of each group."""
    shares: dict[str, Tensor] = {}
    for name in ("rephrase", *GROUPS):
        of_sites = []
        for site, edited in keys["edited"].items():
            k, other = mapped(site, edited), mapped(site, keys[name][site])
            of_sites.append((k * other).sum(1) / (k * k).sum(1))
        shares[name] = torch.stack(of_sites).mean(0)
    ordered = {
        f"rephrase above {group}": float((shares["rephrase"][:, None] > shares[group]).double().mean())
        for group in GROUPS
    }
    return {
        name: round(value, 3) for name, value in {**{k: float(v.mean()) for k, v in shares.items()}, **ordered}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directions", type=int, nargs="*", default=[32, 64, 128, 256])
    options = parser.parse_args()
    model = load_language_model("smollm2-135m-instruct")
    train = prompts_of(WorldFacts("train", limit=700).read().records)
    test = prompts_of(WorldFacts("validation", limit=64).read().records)
    keys = {name: last_keys(model, prompts) for name, prompts in test.items()}
    everything = [prompt for prompts in train.values() for prompt in prompts]
    training_keys = last_keys(model, everything)
    texts = [model.encoder.encode(prompt, "x") for prompt in everything]
    moments = answering_key_moments(model, texts, model.layer_map.sites(LAYERS))
    result = {"as they are": reach(keys, lambda site, k: k)}
    means, deviations = (
        {site: f(inputs, 0) for site, inputs in training_keys.items()} for f in (torch.mean, torch.std)
    )
    # MEND's factors are centred and scaled; centring both sides bounds how well normalised keys can separate prompts.
    result["normalised"] = reach(keys, lambda site, k: (k - means[site]) / deviations[site].sqrt())
    for rank in options.directions:
        whitenings = {site: KeyWhitening(len(moment), rank) for site, moment in moments.items()}
        for site, whitening in whitenings.items():
            whitening.fit(moments[site])
        result[f"whitened, {rank} directions"] = reach(keys, lambda site, k, of=whitenings: of[site](k))
    for name, shares in result.items():
        print(name, shares)
    write_result(__file__, {"records": len(test["edited"]), "keys": result})


if __name__ == "__main__":
    main()
