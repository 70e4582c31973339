"""Compares the updates of locate-then-edit methods on SmolLM2-135M-Instruct with a reference implementation's.

python -m benchmarks.locate_fidelity --reference FOLDER --inputs FILE --statistics FOLDER --commit NAME

The reference's updates (after minus before, one safetensors file for each method, named by it) come from running it on
the same requests, contexts, statistics and settings: 10 evaluations of the loss with learning rate 0.5, weight decay
1e-3, clamp norm 4 and divergence weight 0.0625, and a stop at 0.05; ROME, R-ROME (the first request) and EMMET at layer
5, the others at layers 4 to 8. FILE is JSON: {"requests": [{"prompt": "… {} …", "subject": …, "target_new": …}],
"contexts": ["{}", …]}.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.environment import write_result
from lightning_edit.editors import EMMET, MEMIT, PMET, ROME, AlphaEdit, ContextSettings, Editor, ValueSettings
from lightning_edit.models import load_language_model
from lightning_edit.records import EditRequest

LAYERS = [4, 5, 6, 7, 8]


def editors(contexts: list[str], statistics: str) -> dict[str, Editor]:
    """The methods with the reference's settings. ROME averages over all contexts, the others over groups of them."""
    search = ValueSettings(
        steps=10, learning_rate=0.5, weight_decay=1e-3, clamp_norm=4.0, kl_weight=0.0625, stop_below=0.05
    )
    common: dict[str, Any] = {"statistics": statistics, "search": search}
    single_group = {**common, "contexts": ContextSettings([contexts])}
    two_groups = {**common, "contexts": ContextSettings([contexts[:1], contexts[1:]])}
    weighted_search = replace(search, satisfied_weight=0.1, satisfied_kl=0.01)
    return {
        "rome": ROME(layers=[5], original_keys=True, **single_group),
        "rrome": ROME(layers=[5], **single_group),
        "memit": MEMIT(layers=LAYERS, covariance_weight=15000.0, **two_groups),
        "emmet": EMMET(layers=[5], covariance_weight=1.0, constraint_ridge=0.1, **two_groups),
        "pmet": PMET(layers=LAYERS, covariance_weight=15000.0, **{**two_groups, "search": weighted_search}),
        "alphaedit": AlphaEdit(layers=LAYERS, threshold=0.02, ridge=10.0, **two_groups),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder of the reference's updates")
    parser.add_argument("--inputs", type=Path, required=True, help="requests and contexts")
    parser.add_argument("--statistics", required=True, help="folder of fitted statistics")
    parser.add_argument("--commit", required=True, help="the reference, with its commit")
    options = parser.parse_args()
    inputs = json.loads(options.inputs.read_text(encoding="utf-8"))
    model = load_language_model("smollm2-135m-instruct")
    requests = [
        EditRequest(request["prompt"].format(request["subject"]), request["target_new"], request["subject"])
        for request in inputs["requests"]
    ]
    result: dict[str, Any] = {}
    for name, editor in editors(inputs["contexts"], options.statistics).items():
        path = options.reference / f"{name}.safetensors"
        if not path.exists():
            print(f"{name}: {path} is missing; not compared")
            continue
        editor.setup(model)
        edit = editor.edit(model, requests[:1] if name in ("rome", "rrome") else requests)
        references = load_file(path)
        result[name] = {}
        for site, delta in edit.weight_deltas().items():
            actual = model.layer_map.named_site(site).oriented(delta.dense()).double()
            expected = references[f"{site}.weight"].double()
            result[name][site] = {
                "cosine": round(float(torch.cosine_similarity(actual.flatten(), expected.flatten(), dim=0)), 6),
                "relative error": float(f"{float((actual - expected).norm() / expected.norm()):.3g}"),
                "norm": round(float(actual.norm()), 4),
            }
        print(name, json.dumps(result[name], indent=1), flush=True)
    write_result(__file__, {"reference": options.commit, "updates": result})


if __name__ == "__main__":
    main()
