"""What the benchmarks of locate-then-edit methods share: their command line, records and statistics."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning_edit.components import build, describe
from lightning_edit.data import CounterFact, KnowEditZsRE
from lightning_edit.editors import Editor
from lightning_edit.editors.configured import configured_editor
from lightning_edit.records import EditRecord

LAYERS = "[2, 3, 4, 5, 6, 7, 8, 9, 10]"
"""Layers with statistics."""


def options_of(description: str | None, methods: list[str]) -> argparse.ArgumentParser:
    """A command line with the folder of the published files, methods, and a folder of intermediate results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--methods", nargs="*", choices=methods, default=methods)
    parser.add_argument("--work", type=Path, default=Path("runs/locate"), help="where intermediate results are kept")
    return parser


def counterfact(data: Path) -> list[EditRecord]:
    """All records of the original file."""
    return CounterFact(str(next(data.rglob("counterfact_original*.json")))).read().records


def zsre(data: Path) -> list[EditRecord]:
    """All records of KnowEdit's test file."""
    return KnowEditZsRE(str(data)).read().records


def fitted_statistics(data: Path, work: Path) -> Path:
    """Folder of statistics of WikiText-2's valid.txt, collected first with the command that a user would type."""
    folder = work / "statistics"
    if not folder.exists():
        command = [sys.executable, "-m", "lightning_edit.cli", "fit"]
        command += ["--config", "configs/experiment/memit-smollm2-counterfact.yaml"]
        command += ["--model.editor.init_args.layers", LAYERS, "--model.editor.init_args.statistics", str(folder)]
        command += ["--data.corpus.source", str(next(data.rglob("valid.txt"))), "--data.corpus.tokens", "1000000"]
        command += ["--data.test", "null"]
        subprocess.run(command, check=True)
    return folder


def changed_editor(method: str, statistics: Path, changes: dict[str, Any]) -> Editor:
    """A method with its settings in configs/editor but for some changes, and the statistics, if it wants some.

    Changes of its search and its contexts are named like those of its constructor.
    """
    configured = configured_editor(f"configs/editor/{method}.yaml")
    fitted = {"statistics": str(statistics)} if "statistics" in configured.hyperparameters else {}
    described = describe(configured)
    arguments = {**described["init_args"], **fitted}
    for name, value in changes.items():
        part = next((part for part in ("search", "contexts") if name in (arguments.get(part) or {})), None)
        if part is None:
            arguments[name] = value
        else:
            arguments[part] = {**arguments[part], name: value}
    return build({**described, "init_args": arguments}, Editor, method)
