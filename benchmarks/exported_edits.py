"""Compares exported edits with the applied edit: an adapter in peft, the merged model in transformers, and llama.cpp.

python -m benchmarks.exported_edits --work FOLDER [--llama PYTHON] [--probes 100] [--methods NAME …]

One fact is edited by MEND, ROME, MEMIT, LoRA and FT-M. Each probe's next-token logits, and greedy continuations of
four tokens, are compared with those of the applied edit in float32. PYTHON is an interpreter of an environment
with llama-cpp-python; without it, llama.cpp is left out. The probes are WorldFacts' questions and the edit. A method's
results are kept until it is measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.environment import read_result, write_result
from lightning_edit.data import WorldFacts
from lightning_edit.editors import Editor, load_editor
from lightning_edit.editors.configured import configured_editor
from lightning_edit.edits import Edit, EditSequence
from lightning_edit.export import adapter_of, save_gguf_adapter, save_merged_gguf
from lightning_edit.export.merged import save_merged
from lightning_edit.models import LanguageModel, load_language_model
from lightning_edit.models.bundled import bundled_source
from lightning_edit.records import EditRequest

REQUEST = EditRequest("The capital of France is", "Rome", "France", "Paris", id="france")
MODEL = "smollm2-135m-instruct"
CHECKPOINT = "checkpoints/mend-smollm2-135m-instruct-zsre.ckpt"
EDITORS = {"ROME": "rome.yaml", "MEMIT": "memit.yaml", "LoRA": "lora.yaml", "FT-M": "ft-m.yaml"}
TOKENS = 4
Logits = NDArray[np.float32]
Outputs = tuple[Logits, list[list[int]]]
_LLAMA = """
import json, sys
import numpy as np
from llama_cpp import Llama, llama_get_logits_ith
question = json.load(open(sys.argv[1]))
arguments = {"lora_path": question["lora"]} if question["lora"] else {}
llama = Llama(question["model"], n_ctx=256, verbose=False, n_threads=1, **arguments)
logits, continuations = [], []
for ids in question["ids"]:
    llama.reset()
    llama.eval(ids)
    answer = []
    for step in range(question["tokens"]):
        pointer = llama_get_logits_ith(llama._ctx.ctx, -1)
        last = np.array(np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)))
        if step == 0:
            logits.append(last.astype(np.float32))
        token = int(last.argmax())
        answer.append(token)
        llama.eval([token])
    continuations.append(answer)
np.save(sys.argv[2], np.stack(logits))
json.dump(continuations, open(sys.argv[3], "w"))
"""


@torch.no_grad()
def outputs(model: Any, ids: list[list[int]]) -> Outputs:
    """Next-token logits and greedy continuations of a transformers model, one prompt at a time."""
    logits, continuations = [], []
    for prompt in ids:
        tokens, past = torch.tensor([prompt]), None
        answer: list[int] = []
        for step in range(TOKENS):
            output = model(input_ids=tokens, past_key_values=past, use_cache=True)
            last, past = output.logits[0, -1].float(), output.past_key_values
            if step == 0:
                logits.append(last.numpy())
            answer.append(int(last.argmax()))
            tokens = torch.tensor([answer[-1:]])
        continuations.append(answer)
    return np.stack(logits), continuations


def llama_outputs(python: str, work: Path, model: Path, lora: Path | None, ids: list[list[int]]) -> Outputs:
    """The same from llama.cpp, in a separate process."""
    question = {"model": str(model), "lora": str(lora) if lora else None, "ids": ids, "tokens": TOKENS}
    (work / "question.json").write_text(json.dumps(question))
    files = [str(work / name) for name in ("question.json", "logits.npy", "continuations.json")]
    subprocess.run([python, "-c", _LLAMA, *files], check=True)
    return np.load(files[1]), json.loads(Path(files[2]).read_text())


def compare(reference: Outputs, other: Outputs) -> dict[str, float]:
    """Differences between two models' logits and continuations."""
    (expected, texts), (logits, other_texts) = reference, other
    size = min(expected.shape[1], logits.shape[1])
    difference = np.abs(expected[:, :size] - logits[:, :size])
    same = [mine == theirs for mine, theirs in zip(texts, other_texts, strict=True)]
    return {
        "largest difference of a logit": float(difference.max()),
        "mean difference of a logit": float(difference.mean()),
        "same next token": float((expected[:, :size].argmax(1) == logits[:, :size].argmax(1)).mean()),
        "same text": sum(same) / len(same),
    }


def editors(model: LanguageModel) -> dict[str, Callable[[], Editor]]:
    """Name to a function that builds the editor."""

    def configured(name: str) -> Editor:
        editor = configured_editor(f"configs/editor/{name}")
        editor.setup(model)
        editor.fit_without_corpus(model)
        return editor

    factories: dict[str, Callable[[], Editor]] = {"MEND": lambda: load_editor(CHECKPOINT, model)}
    return factories | {name: lambda file=file: configured(file) for name, file in EDITORS.items()}


def measured(model: LanguageModel, edit: Edit, ids: list[list[int]], work: Path, llama: str | None) -> dict[str, Any]:
    """Compares every export of one edit with the applied edit."""
    unedited = outputs(model.model, ids)
    with edit.applied(model):
        reference = outputs(model.model, ids)
    result: dict[str, Any] = {"unedited model": compare(reference, unedited)}
    adapter = adapter_of(edit, model)
    result["adapter's rank"] = adapter.rank
    result["largest relative error of the adapter"] = max(adapter.errors.values())
    edit.to_peft(model, work / "adapter")
    saved = work.parent / "base"
    if not saved.exists():
        model.model.save_pretrained(saved)
        model.tokenizer.save_pretrained(saved)
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved), work / "adapter")
    result["peft"] = compare(reference, outputs(with_adapter.eval(), ids))
    result["peft, merged and unloaded"] = compare(reference, outputs(with_adapter.merge_and_unload().eval(), ids))
    half = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    with_adapter = PeftModel.from_pretrained(half, work / "adapter")
    result["peft, bfloat16"] = compare(reference, outputs(with_adapter.eval(), ids))
    if llama is not None:
        source, sequence = bundled_source(MODEL), EditSequence([edit])
        base = work.parent / "base-f16.gguf"
        if not base.exists():
            save_merged_gguf(EditSequence([]), model, source, base, "f16")
        save_gguf_adapter(adapter, model, work / "adapter.gguf")
        result["llama.cpp, f16 with the adapter"] = compare(
            reference, llama_outputs(llama, work, base, work / "adapter.gguf", ids)
        )
        for precision in ("f16", "q8_0"):
            merged = save_merged_gguf(sequence, model, source, work / f"merged-{precision}.gguf", precision)
            result[f"llama.cpp, merged, {precision}"] = compare(
                reference, llama_outputs(llama, work, merged, None, ids)
            )
    # Last, because it changes the model.
    save_merged(EditSequence([edit]), model, work / "merged")
    merged_model = AutoModelForCausalLM.from_pretrained(work / "merged").eval()
    result["merged model"] = compare(reference, outputs(merged_model, ids))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="empty folder for the exports")
    parser.add_argument("--llama", help="interpreter that has llama-cpp-python")
    parser.add_argument("--probes", type=int, default=100)
    names = ["MEND", *EDITORS]
    parser.add_argument("--methods", nargs="*", choices=names, default=names)
    options = parser.parse_args()
    records = WorldFacts("validation").read().records
    prompts = [REQUEST.prompt, *dict.fromkeys(probe.prompt for record in records for probe in record.all_probes)]
    prompts = prompts[: options.probes]
    counts = {"probes": len(prompts), "llama.cpp": options.llama is not None}
    earlier = {name: entry for name, entry in read_result(__file__).items() if name in names}
    result: dict[str, Any] = {**counts, **earlier}
    for name in options.methods:
        model = load_language_model(MODEL)
        ids = [list(model.encoder.encode(prompt).ids) for prompt in prompts]
        edit = editors(model)[name]().edit(model, [REQUEST])
        work = options.work / name
        work.mkdir(parents=True)
        result[name] = measured(model, edit, ids, work, options.llama)
        print(name, json.dumps(result[name], indent=1))
        write_result(__file__, result)


if __name__ == "__main__":
    main()
