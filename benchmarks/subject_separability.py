"""Whether the inputs of edit sites separate subjects: a rephrased prompt against a prompt of another subject.

python -m benchmarks.subject_separability
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from benchmarks.environment import write_result
from lightning_edit.data import WorldFacts
from lightning_edit.data.worldfacts_text import PHRASINGS
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.records import ProbeKind

LAYERS = range(0, 30, 2)


def subject_of(prompt: str) -> str:
    """The subject of a prompt built from one of the phrasings."""
    for phrasings in PHRASINGS.values():
        for wording in phrasings.seen:
            if match := re.fullmatch(re.escape(wording).replace(r"\{\}", "(.+)"), prompt):
                return match.group(1)
    raise ValueError(f"no phrasing made {prompt!r}")


@torch.no_grad()
def inputs(model: LanguageModel, prompts: list[str]) -> dict[int, dict[str, Tensor]]:
    """Layer to the site's inputs at the last token of the prompt and at the last token of its subject."""
    texts = []
    for prompt in prompts:
        start = prompt.rindex(subject_of(prompt))
        texts.append(model.encoder.encode(prompt, "x", (start, start + len(subject_of(prompt)))))
    seen: dict[int, Tensor] = {}
    sites = [model.layer_map.site(layer) for layer in LAYERS]
    handles = [
        site.module.register_forward_hook(lambda module, args, output, layer=site.layer: seen.update({layer: args[0]}))
        for site in sites
    ]
    model.answer_logits(model.encoder.collate(texts))
    for handle in handles:
        handle.remove()
    rows = torch.arange(len(texts))
    last = torch.tensor([text.target[0] - 1 for text in texts])
    subject = torch.tensor([text.subject[1] - 1 for text in texts if text.subject is not None])
    return {layer: {"last token": x[rows, last], "subject": x[rows, subject]} for layer, x in seen.items()}


def main() -> None:
    model = load_language_model("smollm2-135m-instruct")
    records = WorldFacts("train", limit=64).read().records
    edited = inputs(model, [record.requests[0].prompt for record in records])
    reworded = inputs(model, [record.probes_of(ProbeKind.GENERALIZATION)[0].prompt for record in records])
    others = inputs(model, [record.probes_of(ProbeKind.LOCALITY)[0].prompt for record in records])
    rows = []
    for layer in LAYERS:
        row: dict[str, float] = {"layer": layer}
        for place in ("last token", "subject"):
            parts = [site_inputs[layer][place] for site_inputs in (edited, reworded, others)]
            together = torch.cat(parts)
            reference, same, other = ((part - together.mean(0)) / (together.std(0) + 1e-6) for part in parts)
            for name, compared in (("same subject", same), ("other subject", other)):
                row[f"{place}, {name}"] = round(float(torch.cosine_similarity(reference, compared).mean()), 3)
        rows.append(row)
        print(row)
    write_result(__file__, {"mean cosine of normalised inputs": rows})


if __name__ == "__main__":
    main()
