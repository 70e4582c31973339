"""ROME with the statistics that come with the package, beside full precision, another corpus, and sampled text.

python -m benchmarks.shipped_statistics --data FOLDER [--records N] [--ship FOLDER]

FOLDER holds the published files. Statistics are collected on 100,000 tokens of WikiText-2's valid.txt (those that are
shipped), on as many of its test.txt (as a second sample of the same kind of text), on text that the model samples, and
on the sentences of the built-in WorldFacts. With them, directions C⁻¹k of keys of CounterFact's subjects are compared
(cosine with those of valid.txt in full precision), the share of an update that reaches another subject
(|k'ᵀC⁻¹k| / kᵀC⁻¹k), and ROME's edits of the first records. --ship writes the packed statistics there and stops.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import write_result
from benchmarks.evaluating import evaluate, summary
from benchmarks.locating import changed_editor, counterfact, options_of
from lightning_edit.data import WorldFacts
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.models.moment_sums import MomentSums
from lightning_edit.models.recording import Tap, record
from lightning_edit.models.sampled_statistics import sampled_statistics
from lightning_edit.models.statistics import Corpus, IdentityStatistics, KeyStatistics, Statistics
from lightning_edit.modules import EvaluationSettings, Evaluator
from lightning_edit.records import EditRecord

LAYERS = [4, 5, 6, 7, 8, 9]
"""Those that the configurations for this model name."""
LAYER = 9
"""ROME's."""
SUBJECTS = 100
LENGTH, BUILT_IN_ROWS = 64, 313
"""Of the packed texts of WorldFacts: 20,000 tokens."""


def collected(corpus: Path, folder: Path) -> KeyStatistics:
    """Statistics on the beginning of a file, collected first with the command that a user would type."""
    if not folder.exists():
        command = [sys.executable, "-m", "lightning_edit", "fit", "--config", "@memit-smollm2-counterfact"]
        command += ["--model.editor.layers", str(LAYERS), "--model.editor.statistics", str(folder)]
        command += ["--data.corpus.source", str(corpus), "--data.corpus.tokens", "100000", "--data.test", "null"]
        subprocess.run(command, check=True)
    return KeyStatistics.load(folder)


def built_in_statistics(model: LanguageModel) -> KeyStatistics:
    """Statistics of ROME's layer on the true sentences of WorldFacts, packed one behind the other."""
    records = WorldFacts("train").read().records
    pairs = [(one.requests[0].prompt, one.requests[0].ground_truth) for one in records]
    ids = model.tokenizer(" ".join(f"{prompt} {answer}." for prompt, answer in pairs))["input_ids"]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)[:BUILT_IN_ROWS]
    sums = MomentSums()
    for batch in rows.split(16):
        sums.add_batch(model, batch, [model.layer_map.site(LAYER)])
    corpus = Corpus("WorldFacts", LENGTH, rows.numel(), "")
    return KeyStatistics(sums.moments(), corpus, model.name, model.fingerprint)


def subject_keys(model: LanguageModel, records: list[EditRecord]) -> Tensor:
    """(N, M) float64 what ROME's layer reads at the last token of each record's subject."""
    requests = [one.requests[0] for one in records]
    texts = [model.encoder.encode(request.prompt, "", request.subject_span) for request in requests]
    last = [text.subject[1] - 1 for text in texts if text.subject is not None]
    site = model.layer_map.site(LAYER)
    return record(model, texts, last, {"keys": Tap(site.module, "input", LAYER)})["keys"].double()


def compared(statistics: Statistics, reference: Statistics, site: str, keys: Tensor) -> dict[str, float]:
    """How directions differ from the reference's, and how much of an update reaches other subjects."""
    directions, expected = (one.inverse_times(site, keys.T) for one in (statistics, reference))
    reached = (keys @ directions / (keys.T * directions).sum(0)).abs()
    others = reached[~torch.eye(len(keys), dtype=torch.bool)]
    return {
        "cosine of C⁻¹k": round(float(torch.cosine_similarity(directions, expected, dim=0).mean()), 4),
        "share that reaches another subject, mean": round(float(others.mean()), 4),
        "95th percentile": round(float(others.quantile(0.95)), 4),
    }


def main() -> None:
    parser = options_of(__doc__, [])
    parser.add_argument("--records", type=int, default=20, help="records of CounterFact that ROME edits")
    parser.add_argument("--ship", type=Path, help="write the packed statistics there, and stop")
    options = parser.parse_args()

    valid = collected(next(options.data.rglob("wikitext2/valid.txt")), options.work / "statistics-valid")
    if options.ship:
        print(valid.save(options.ship, packed=True))
        return
    model = load_language_model("smollm2-135m-instruct")
    variants: dict[str, Statistics] = {
        "valid.txt, full precision": valid,
        "valid.txt, as shipped": KeyStatistics.load(valid.save(options.work / "packed", packed=True)),
        "test.txt": collected(next(options.data.rglob("wikitext2/test.txt")), options.work / "statistics-test"),
        "sampled by the model": sampled_statistics(model, [LAYER]),
        "sampled, 20,000 tokens": sampled_statistics(model, [LAYER], tokens=20_000),
        "WorldFacts, 20,000 tokens": built_in_statistics(model),
        "identity": IdentityStatistics(),
    }
    records = counterfact(options.data)
    keys, site = subject_keys(model, records[:SUBJECTS]), model.layer_map.site(LAYER).name
    evaluator = Evaluator(model, EvaluationSettings(generate=False))
    result: dict[str, Any] = {}
    for name, statistics in variants.items():
        editor = changed_editor("rome", options.work, {})
        editor.setup(model)
        editor.use_statistics(statistics)
        path = options.work / f"{name}.jsonl".replace(" ", "-")
        lines, _ = evaluate(evaluator, editor, records[: options.records], path, 10)
        result[name] = {
            "corpus": statistics.origin,
            **compared(statistics, valid, site, keys),
            "ROME": summary(lines, {one.id for one in records[: options.records]}),
        }
        print(name, result[name], flush=True)
        write_result(__file__, {"variants": result})


if __name__ == "__main__":
    main()
