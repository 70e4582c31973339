"""Exported adapters read by vLLM's own loader.

python -m benchmarks.vllm_loader --vllm FOLDER [--methods NAME …]

FOLDER has vLLM and what its loader imports, unpacked without torch and transformers, which are this environment's:

pip install --no-deps --target FOLDER vllm cbor2 openai-harmony pybase64 cachetools msgspec uvloop py-cpuinfo \\
    prometheus-client xgrammar apache-tvm-ffi partial-json-parser llguidance einops

vLLM's published wheel has kernels for GPUs alone and does not serve on a CPU, but its loader of adapters is Python: it
checks the configuration (PEFTHelper.validate_legal) and the names of the modules, and reads the tensors
(LoRAModel.from_local_checkpoint). What it reads is compared with the edit's change of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.environment import write_result
from benchmarks.exported_edits import MODEL, REQUEST, editors
from lightning_edit.models import load_language_model

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules of Llama's architecture that vLLM takes adapters for."""
_LOADER = """
import json, sys
from types import SimpleNamespace
from safetensors.torch import save_file
from vllm.lora import lora_model
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
lora_model.PIN_MEMORY = False  # there is no GPU to pin it for
folder, output, rank, modules = sys.argv[1], sys.argv[2], int(sys.argv[3]), set(json.loads(sys.argv[4]))
helper = PEFTHelper.from_local_dir(folder, max_position_embeddings=None)
helper.validate_legal(SimpleNamespace(max_lora_rank=rank))
adapter = LoRAModel.from_local_checkpoint(folder, modules, helper, lora_model_id=1, device="cpu")
save_file({name: (one.lora_b @ one.lora_a * one.scaling).contiguous() for name, one in adapter.loras.items()}, output)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="folder that vLLM is unpacked in")
    parser.add_argument("--methods", nargs="*", default=["MEND", "ROME", "MEMIT", "LoRA", "FT-M"])
    options = parser.parse_args()
    model = load_language_model(MODEL)
    [metadata] = options.vllm.glob("vllm-*.dist-info")
    result: dict[str, Any] = {"vllm": metadata.name.removesuffix(".dist-info").removeprefix("vllm-")}
    paths = [str(options.vllm.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for name in options.methods:
        edit = editors(model)[name]().edit(model, [REQUEST])
        with tempfile.TemporaryDirectory() as folder:
            edit.to_peft(model, folder)
            rank = json.loads((Path(folder) / "adapter_config.json").read_text())["r"]
            output = Path(folder) / "read.safetensors"
            command = [sys.executable, "-c", _LOADER, folder, str(output), str(rank), json.dumps(MODULES)]
            subprocess.run(command, check=True, env=environment)
            read = load_file(output)
        deltas = {site: delta.dense().T.float() for site, delta in edit.weight_deltas().items()}
        assert read.keys() == deltas.keys(), (sorted(read), sorted(deltas))
        errors = [float((read[site] - delta).norm() / delta.norm()) for site, delta in deltas.items()]
        result[name] = {"rank": rank, "modules": len(read), "largest relative error": max(errors)}
        print(name, result[name], flush=True)
        write_result(__file__, result)


if __name__ == "__main__":
    main()
