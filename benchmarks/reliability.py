"""Kills, damaged files, concurrent runs and full disks: what is lost, silently changed, or raised raw.

python -m benchmarks.reliability [--seed 0] [--kills 50] [--mutations 10000] [--configurations 500]

Runs on a tiny model. Work is killed (SIGKILL) after a random part of the time that it takes, gone on with, and compared
with work that was not: fit, statistics, a sequence of edits, and edits saved in a tight loop. Files of every reader,
configuration and artifact are damaged. Two processes write to one folder while a third reads it. Everything that writes
is run on a small disk (a tmpfs, where the system allows one). What was not handled is written into the result with the
damaged file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.environment import write_result
from benchmarks.mutations import artifact_targets, configuration_targets, reader_targets, run_mutations
from lightning_edit.checkpoint_io import AtomicCheckpointIO
from lightning_edit.cli import main as command_line
from lightning_edit.editors.checkpoint import read_checkpoint, state_digest
from lightning_edit.edits import FactoredDelta, Provenance, WeightEdit, load_edit
from lightning_edit.errors import LightningEditError
from lightning_edit.files import replace_file, write_json
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.records import EditRequest
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model

_LOG = Path(tempfile.gettempdir()) / "reliability.log"
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Work:
    """A job that the campaign kills and resumes.

    Args:
        name: What it is.
        run: Does it in a folder, or goes on with it there.
        result: What it left in the folder, to compare.
    """

    name: str
    run: Callable[[Path], None]
    result: Callable[[Path], object]


def _in_child(function: Callable[[], object]) -> Any:
    """Starts a function in a forked process, which has imported everything already, with its output in a file."""

    def silent() -> None:
        with open(_LOG, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            warnings.simplefilter("ignore")
            function()

    process = _FORK.Process(target=silent)
    process.start()
    return process


def run_kills(work: Work, number: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kills a piece of work after random times, lets it go on, and compares the results.

    Returns:
        How many were killed before their end, how many then failed to go on, and how many gave another result.
    """
    started = time.perf_counter()
    whole_folder = _fresh(folder / "whole")
    process = _in_child(lambda: work.run(whole_folder))
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.name} failed without being killed; see {_LOG}")
    seconds, whole = time.perf_counter() - started, work.result(whole_folder)
    counts: Counter[str] = Counter(killed=0, failed=0, different=0, leftovers=0)
    problems: list[str] = []
    while counts["killed"] < number:
        place = _fresh(folder / "killed")
        process = _in_child(lambda place=place: work.run(place))
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            counts["killed"] += 1
        process.join()
        process = _in_child(lambda place=place: work.run(place))
        process.join()
        if process.exitcode:
            counts["failed"] += 1
            problems.append(f"exit status {process.exitcode} when gone on with")
        elif work.result(place) != whole:
            counts["different"] += 1
        counts["leftovers"] += len(list(place.rglob(".*.unfinished")))
    return {**counts, "problems": problems[:5]}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _command(arguments: list[str]) -> None:
    status = command_line(arguments)
    if status:
        raise SystemExit(status)


def works(model: Path, text: Path) -> list[Work]:
    """fit, statistics, a sequence of edits."""

    def fit(folder: Path) -> None:
        last = folder / "checkpoints" / "last.ckpt"
        _command(
            ["fit", "--config", str(_fit_config(folder, model)), *(["--ckpt_path", "last"] if last.exists() else [])]
        )

    def statistics(folder: Path) -> None:
        if not (folder / "statistics").exists():
            _command(["fit", "--config", str(_statistics_config(folder, model, text))])

    def sequence(folder: Path) -> None:
        _command(["test", "--config", str(_sequence_config(folder, model))])

    return [
        Work(
            "fit", fit, lambda folder: state_digest(read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])
        ),
        Work("statistics", statistics, lambda folder: state_digest(KeyStatistics.load(folder / "statistics").moments)),
        Work(
            "sequence", sequence, lambda folder: json.loads((folder / "report" / "metrics.json").read_text())["metrics"]
        ),
    ]


def _config(folder: Path, kind: str, editor: dict[str, Any], model: Path, **parts: Any) -> Path:
    configured = {
        "seed_everything": 3,
        "model": {
            "class_path": f"lightning_edit.modules.{kind}",
            "init_args": {"language_model": {"name_or_path": str(model)}, "editor": editor, **parts.pop("module", {})},
        },
        "data": parts.pop("data"),
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": str(folder), **parts.pop("trainer", {}),
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(configured), encoding="utf-8")
    return path


def _facts(split: str, limit: int) -> dict[str, Any]:
    return {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": split, "limit": limit}}


def _fit_config(folder: Path, model: Path, output: Path | None = None) -> Path:
    editor = {"class_path": "lightning_edit.editors.MEND", "init_args": {"sites": [1, 2], "rank": 4}}
    checkpoints = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str((output or folder) / "checkpoints"), "save_top_k": 0},
    }
    last = {"class_path": "lightning_edit.callbacks.LastCheckpoint", "init_args": {"every_seconds": 0.02}}
    return _config(
        folder, "HypernetworkEditing", editor, model,
        data={"train": _facts("train", 60), "batch_size": 4}, trainer={"callbacks": [checkpoints, last]},
    )  # fmt: skip


def _statistics_config(folder: Path, model: Path, text: Path) -> Path:
    settings = {"layers": [0, 1], "statistics": str(folder / "statistics"), "search": {"steps": 4}}
    editor = {"class_path": "lightning_edit.editors.MEMIT", "init_args": settings}
    corpus = {"source": str(text), "tokens": 20_000, "length": 32, "batch_size": 4}
    return _config(folder, "LocateEditing", editor, model, data={"corpus": corpus}, module={"save_every": 1})


def _sequence_config(folder: Path, model: Path, output: Path | None = None) -> Path:
    editor = {"class_path": "lightning_edit.editors.GradientStep", "init_args": {"sites": [1, 2]}}
    sequential = {"every": 5, "folder": str((output or folder) / "sequence")}
    report = {"class_path": "lightning_edit.callbacks.TestReport", "init_args": {"folder": str(folder / "report")}}
    return _config(
        folder, "EditingModule", editor, model, data={"test": _facts("validation", 20)},
        module={"evaluation": {"generate": False, "sequential": sequential}}, trainer={"callbacks": [report]},
    )  # fmt: skip


def _example_edit(seed: int, rank: int = 8) -> WeightEdit:
    model = language_model("llama")
    site, generator = model.layer_map.site(1), torch.Generator().manual_seed(seed)
    factors = FactoredDelta(
        torch.randn(site.fan_in, rank, generator=generator), torch.randn(rank, site.fan_out, generator=generator)
    )
    return WeightEdit(
        {site.name: factors}, Provenance.of(model, f"edit {seed}", {}, [EditRequest("a", "b", id=str(seed))])
    )


def _digest_of(edit: Any) -> tuple[str, str]:
    deltas = edit.weight_deltas().items()
    return edit.id, state_digest({f"{site} {name}": value for site, d in deltas for name, value in d.tensors().items()})


def run_saving_kills(number: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kills a process that saves two edits by turns into one folder; one of them must always be there, whole."""
    edits = [_example_edit(0), _example_edit(1)]
    allowed, place = {_digest_of(edit) for edit in edits}, _fresh(folder / "saving") / "edit"
    edits[0].save(place)

    def save_for_ever() -> None:
        while True:
            for edit in edits:
                edit.save(place)

    counts: Counter[str] = Counter(killed=0, lost=0, different=0)
    for _ in range(number):
        process = _in_child(save_for_ever)
        process.join(rng.uniform(0.02, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        counts["killed"] += 1
        try:
            counts["different"] += _digest_of(load_edit(place)) not in allowed
        except LightningEditError:
            counts["lost"] += 1
    edits[0].save(place)
    return {**counts, "leftovers": len(list(place.parent.rglob(".*.unfinished")))}


def run_concurrently(seconds: float, folder: Path) -> dict[str, int]:
    """Two processes save into one folder while this one reads it."""
    edits = [_example_edit(0), _example_edit(1)]
    allowed, place = {_digest_of(edit) for edit in edits}, _fresh(folder / "shared") / "edit"
    edits[0].save(place)

    def save(edit: WeightEdit) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            edit.save(place)

    writers = [_in_child(lambda edit=edit: save(edit)) for edit in edits]
    counts: Counter[str] = Counter(loads=0, mixed=0, errors=0)
    while any(writer.is_alive() for writer in writers):
        try:
            counts["mixed"] += _digest_of(load_edit(place)) not in allowed
        except LightningEditError:
            counts["errors"] += 1
        counts["loads"] += 1
    return {**counts, "failed writers": sum(bool(writer.exitcode) for writer in writers)}


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path | None]:
    """A disk of a few kilobytes; None where the system does not allow to mount one."""
    place = _fresh(folder / "small")
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def run_full_disks(folder: Path, model: Path) -> dict[str, str]:
    """Writes everything on disks that are too small for it.

    Returns:
        For each, "refused" (an error of the package, nothing left), "written", or what went wrong.
    """
    edit, base = _example_edit(0, rank=1000), language_model("llama")
    moments = {"site": torch.zeros(200, 200)}
    statistics = KeyStatistics(moments, Corpus("text", 8, 800, "0"), "tiny", base.fingerprint)
    checkpoint = {"state_dict": {"a": torch.zeros(40_000)}}
    configured = _fresh(folder / "configured")

    def stream(path: Path) -> None:
        with replace_file(path) as temporary:
            temporary.write_bytes(bytes(200_000))

    writers: dict[str, Callable[[Path], object]] = {
        "edit": lambda place: edit.save(place / "edit"),
        "statistics": lambda place: statistics.save(place / "statistics"),
        "checkpoint": lambda place: AtomicCheckpointIO().save_checkpoint(checkpoint, place / "last.ckpt"),
        "measures": lambda place: write_json(place / "metrics.json", {"x": "y" * 200_000}),
        "a file of unknown size": lambda place: stream(place / "file"),
        "fit": lambda place: _strict(["fit", "--config", str(_fit_config(configured, model, place))]),
        "test": lambda place: _strict(["test", "--config", str(_sequence_config(configured, model, place))]),
    }
    return {name: _on_a_full_disk(folder, writer) for name, writer in writers.items()}


def _strict(arguments: list[str]) -> None:
    """Runs a command that is expected to end with a message."""
    if command_line(arguments):
        raise LightningEditError("the command said what is wrong")


def _on_a_full_disk(folder: Path, writer: Callable[[Path], object]) -> str:
    with small_disk(folder, 64) as place:
        if place is None:
            return "not tried: no small disk can be mounted here"
        try:
            writer(place)
        except LightningEditError:
            left = [path.name for path in place.rglob("*") if path.name.endswith(".unfinished")]
            return f"left behind: {left}" if left else "refused"
        except Exception as error:  # whatever it is, it is what the campaign looks for
            return f"raw: {type(error).__name__}: {error}"[:300]
        return "written"


def campaign(seed: int, kills: int, mutations: int, configurations: int, folder: Path) -> dict[str, Any]:
    """The whole campaign.

    Args:
        seed: Seed of everything random.
        kills: Kills of each kind of work.
        mutations: Damaged files of readers and artifacts.
        configurations: Damaged configurations; each runs the command line.
        folder: Where it works.
    """
    torch.set_num_threads(1)
    # Runs whose configuration was damaged may write where they are.
    with working_in(folder):
        return _campaign(seed, kills, mutations, configurations, folder)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Changes the current folder."""
    earlier = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(earlier)


def _campaign(seed: int, kills: int, mutations: int, configurations: int, folder: Path) -> dict[str, Any]:
    rng = random.Random(seed)
    model, text = folder / "model", folder / "corpus.txt"
    build(FAMILIES["llama"][0]()).save_pretrained(model)
    byte_level_tokenizer().save_pretrained(model)
    text.write_text(
        "\n\n".join(f"The capital of country {n} is city {n * 7}.\nIt lies by the sea." for n in range(900)),
        encoding="utf-8",
    )
    result: dict[str, Any] = {"seed": seed}
    result["kills"] = {work.name: run_kills(work, kills, rng, folder / "work") for work in works(model, text)}
    result["kills"]["saving"] = run_saving_kills(kills, rng, folder)
    result["concurrent"] = run_concurrently(kills / 10, folder)
    result["full disks"] = run_full_disks(folder, model)
    files = folder / "files"
    parts = {
        "readers and artifacts": ([*reader_targets(files / "data"), *artifact_targets(files / "artifacts")], mutations),
        "configurations": (configuration_targets(files / "configurations", model), configurations),
    }
    for name, (targets, number) in parts.items():
        counts, mishaps = run_mutations(targets, number, rng, folder)
        result[name] = {
            "damaged": number,
            "outcomes": dict(sorted(counts.items())),
            "mishaps": [{**vars(mishap), "content": mishap.content[:500].hex()} for mishap in mishaps[:20]],
            "raw": sum(mishap.problem == "raw" for mishap in mishaps),
            "silent": sum(mishap.problem == "silent" for mishap in mishaps),
        }
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """What a campaign found wrong, a line each; none is the aim."""
    wrong = [
        f"{name}: {count} {what}"
        for name, counts in {**result["kills"], "concurrent": result["concurrent"]}.items()
        for what, count in counts.items()
        if what not in ("killed", "loads", "problems") and count
    ]
    wrong += [
        f"full disk, {name}: {end}" for name, end in result["full disks"].items() if end.startswith(("raw", "left"))
    ]
    for name in ("readers and artifacts", "configurations"):
        wrong += [f"{name}: {result[name][what]} {what}" for what in ("raw", "silent") if result[name][what]]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--configurations", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(options.seed, options.kills, options.mutations, options.configurations, Path(folder))
    wrong = failures(result)
    write_result(__file__, {**result, "failures": wrong})
    print("\n".join(wrong) or "nothing lost, nothing silently changed, nothing raw")


if __name__ == "__main__":
    main()
