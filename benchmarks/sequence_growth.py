"""Time and memory of one more edit on top of T earlier ones.

python -m benchmarks.sequence_growth [--tiny 10 100 1000 10000] [--smollm2 10 100 1000]

A sequence is filled with random edits of the same shape as AlphaEdit's, with the keys that they carry; then one more
edit is made on top of it by AlphaEdit, added, applied and scored once. The earlier edits differ from real ones in their
values alone, which neither time nor memory depends on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.environment import peak_memory, write_result
from lightning_edit.editors import AlphaEdit, ContextSettings, ValueSettings
from lightning_edit.edits import EditSequence, FactoredDelta, Provenance, WeightEdit
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.records import EditRequest
from tests.tiny_models import language_model

REQUEST = EditRequest("The capital of France is", "Rome", "France")
REPEATS = 3


def moments_of(model: LanguageModel, layers: list[int]) -> KeyStatistics:
    """Random second moments, most of whose directions are free."""
    moments = {}
    for layer in layers:
        site = model.layer_map.site(layer)
        keys = torch.randn(site.fan_in // 4, site.fan_in, generator=torch.Generator().manual_seed(layer))
        moments[site.name] = keys.T @ keys / len(keys) + 1e-4 * torch.eye(site.fan_in)
    return KeyStatistics(moments, Corpus("random", 8, 100_000, ""), model.name, model.fingerprint)


def random_edit(model: LanguageModel, layers: list[int], number: int, before: tuple[str, ...]) -> WeightEdit:
    generator = torch.Generator().manual_seed(number)
    deltas, state = {}, {}
    for layer in layers:
        site = model.layer_map.site(layer)
        a = 1e-4 * torch.randn(site.fan_in, 1, generator=generator)
        deltas[site.name] = FactoredDelta(a, 1e-4 * torch.randn(1, site.fan_out, generator=generator))
        state[f"keys/{site.name}"] = torch.randn(1, site.fan_in, generator=generator)
    provenance = replace(Provenance.of(model, "AlphaEdit", {}, [REQUEST]), depends_on=before)
    return WeightEdit(deltas, provenance, state)


def measured(model: LanguageModel, layers: list[int], counts: list[int], **settings: Any) -> list[dict[str, Any]]:
    editor = AlphaEdit(
        layers=layers, contexts=ContextSettings([["{}"], ["So. {}"]]), search=ValueSettings(steps=5), **settings
    )
    editor.use_statistics(moments_of(model, layers))
    sequence, rows = EditSequence(), []
    for count in counts:
        while len(sequence) < count:
            sequence = sequence.then(random_edit(model, layers, len(sequence), sequence.frontier))
        editor.edit(model, [REQUEST], after=sequence)
        times: dict[str, list[float]] = {"editing": [], "adding": [], "applying and scoring": []}
        for _ in range(REPEATS):
            start = time.perf_counter()
            edit = editor.edit(model, [REQUEST], after=sequence)
            edited_at = time.perf_counter()
            longer = sequence.then(edit)
            added = time.perf_counter()
            with longer.applied(model) as edited:
                edited.score([REQUEST.prompt], [REQUEST.target])
            times["applying and scoring"].append(time.perf_counter() - added)
            times["editing"].append(edited_at - start)
            times["adding"].append(added - edited_at)
        tensors = [t for delta in sequence.weight_deltas().values() for t in delta.tensors().values()]
        kept = sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *sequence.state.values()))
        rows.append(
            {
                "earlier edits": count,
                **{f"seconds {name}": round(min(values), 4) for name, values in times.items()},
                "bytes of the folded changes and the state": kept,
                "peak memory of the process, bytes": peak_memory(),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=int, nargs="*", default=[10, 100, 1000, 10000])
    parser.add_argument("--smollm2", type=int, nargs="*", default=[10, 100, 1000])
    options = parser.parse_args()
    result = {
        "tiny Llama of three layers": measured(language_model("llama"), [0, 1], options.tiny),
        "SmolLM2-135M-Instruct": measured(
            load_language_model("smollm2-135m-instruct"), [2, 3, 4, 5, 6], options.smollm2
        ),
    }
    write_result(__file__, result)


if __name__ == "__main__":
    main()
