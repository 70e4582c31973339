"""Damaged files: what every reader, configuration and artifact makes of them."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_edit import data
from lightning_edit.cli import main
from lightning_edit.data.corpus import documents
from lightning_edit.data.known import read_known_facts
from lightning_edit.editors import MEND
from lightning_edit.editors.checkpoint import KEY, describe, read_checkpoint, state_digest
from lightning_edit.editors.configured import configured_editor
from lightning_edit.edits import FactoredDelta, Provenance, WeightEdit, load_edit
from lightning_edit.errors import ConfigurationError, LightningEditError
from lightning_edit.manifests import read_manifest, write_manifest
from lightning_edit.models.statistics import Corpus, KeyStatistics
from lightning_edit.models.trunk_store import Entry, Identity, Kept, open_or_build
from lightning_edit.records import EditRequest
from tests.tiny_models import language_model

_ROOT = Path(__file__).resolve().parents[1]
_DEEP = "lightning-edit-deep"
_LONG_NUMBER = "lightning-edit-long-number"
_ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), "", " ", "\ud800", "x\u0000y", "İstanbul", "שלום [/INST]",
    "x" * 5000, [], {}, [[]], [[""]], ["a", None], {"a": 1}, _DEEP, _LONG_NUMBER,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Files to damage, and what reads them.

    Args:
        name: What they are.
        folder: The undamaged files.
        files: Those that are damaged, one at a time.
        load: Reads a folder of such files; what it returns is compared, by ==, with what the undamaged ones give.
        has_digest: Whether every change must be noticed.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    load: Callable[[Path], object]
    has_digest: bool


@dataclass(frozen=True)
class Mishap:
    """A damaged file that raised a raw exception or was read with wrong content.

    Args:
        target: What it was.
        file: Name of the file.
        problem: "raw" for an exception that is none of the package's, "silent" for other content without an error.
        detail: The exception.
        content: The file, to repeat it.
    """

    target: str
    file: str
    problem: str
    detail: str
    content: bytes


def damaged(content: bytes, rng: random.Random, is_text: bool) -> bytes:
    """One random mutation of a file."""
    kinds = [_flip, _cut, _insert, _drop, _swap]
    if is_text:
        kinds += [_odd_value] * 6 + [_bad_bytes]
    return rng.choice(kinds)(content, rng)


def _flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 8)) + content[place:]


def _drop(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randint(1, 64) :]


def _swap(content: bytes, rng: random.Random) -> bytes:
    first, second = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:first] + content[second:] + content[first:second]


def _bad_bytes(content: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\x00"]) + content


def _odd_value(content: bytes, rng: random.Random) -> bytes:
    """JSON with a value somewhere in it replaced, removed or renamed."""
    lines = content.split(b"\n")
    try:
        whole, place = json.loads(content), -1
    except ValueError:
        place = rng.randrange(len(lines))
        try:
            whole = json.loads(lines[place])
        except ValueError:
            return _flip(content, rng)
    holders = list(_holders(whole))
    if not holders:
        return _flip(content, rng)
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if rng.random() < 0.15:
        del holder[key]
    elif rng.random() < 0.15 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    else:
        holder[key] = rng.choice(_ODD_VALUES)
    text = json.dumps(whole, ensure_ascii=rng.random() < 0.5)
    text = text.replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000).replace(f'"{_LONG_NUMBER}"', "9" * 5000)
    encoded = text.encode("utf-8", "surrogatepass")
    return encoded if place < 0 else b"\n".join([*lines[:place], encoded, *lines[place + 1 :]])


def _holders(value: Any) -> Iterator[Any]:
    """Every dictionary and list in plain data that is not empty."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def run_mutations(
    targets: list[Target], number: int, rng: random.Random, work: Path
) -> tuple[Counter[str], list[Mishap]]:
    """Reads damaged copies of each target's files in turn.

    Returns:
        Number of runs per outcome ("target: refused", "unchanged", "read"), and what was not handled.
    """
    counts: Counter[str] = Counter()
    mishaps: list[Mishap] = []
    whole = {target.name: target.load(target.folder) for target in targets}
    for index in range(number):
        target = targets[index % len(targets)]
        file = rng.choice(target.files)
        folder = work / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(target.folder, folder)
        content = damaged((target.folder / file).read_bytes(), rng, Path(file).suffix in (".json", ".jsonl"))
        (folder / file).write_bytes(content)
        try:
            same = target.load(folder) == whole[target.name]
            outcome = "unchanged" if same else "silent" if target.has_digest else "read"
            detail = ""
        except LightningEditError:
            outcome, detail = "refused", ""
        except Exception as error:  # whatever it is, it is what the campaign looks for
            outcome, detail = "raw", f"{type(error).__name__}: {error}"[:300]
        counts[f"{target.name}: {outcome}"] += 1
        if outcome in ("raw", "silent"):
            mishaps.append(Mishap(target.name, file, outcome, detail, content))
    return counts, mishaps


def _write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = isinstance(content, list) and name.endswith(".jsonl")
    text = "\n".join(json.dumps(line) for line in content) if lines else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def _record(**fields: Any) -> dict[str, Any]:
    return {
        "subject": "Ann Poe",
        "prompt": "Ann Poe works for",
        "target_new": "Acme",
        "ground_truth": "Initech",
        **fields,
    }


def reader_targets(folder: Path) -> list[Target]:
    """A small hand-made file for every reader of records."""
    probe = {"prompt": "Ann Poe was born in", "ground_truth": [["Oslo", "Christiania"]]}
    knowedit = [_record(portability={"Reasoning": [probe]}, locality={"Relation_Specificity": [probe]})] * 3
    zsre = {
        "subject": "Mount Doe", "src": "Which range holds Mount Doe?", "pred": "Alps", "alt": "Andes",
        "rephrase": "Mount Doe is in which range?", "answers": ["Rockies"], "loc": "nq question: who?", "loc_ans": "Ed",
    }  # fmt: skip
    rewrite = {
        "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Jo Doe",
        "target_new": {"str": "English", "id": "Q1"}, "target_true": {"str": "French", "id": "Q2"},
    }  # fmt: skip
    original = {
        "case_id": 3, "pararel_idx": 9, "requested_rewrite": rewrite, "paraphrase_prompts": ["Jo Doe speaks"],
        "neighborhood_prompts": ["Al Roe speaks"], "attribute_prompts": ["Bo Poe speaks"],
        "generation_prompts": ["Jo Doe"],
    }  # fmt: skip
    compact = {
        **_record(), "case_id": 4, "rephrase_prompt": "Ann's employer is", "locality_prompt": "Al Roe works for",
        "locality_ground_truth": "Initech",
    }  # fmt: skip
    hop = {"question": "Who leads it?", "cloze": "It is led by", "answer": "Al", "answer_alias": ["A."]}
    mquake = {
        "case_id": 1, "requested_rewrite": [{**rewrite, "question": "What?"}], "questions": ["Who?"] * 3,
        "answer": "Al", "new_answer": "Bo", "answer_alias": [], "new_answer_alias": ["B."], "single_hops": [hop],
        "new_single_hops": [hop], "orig": {"triples": [], "new_triples": []},
    }  # fmt: skip
    sanitation = {
        "success": [{"question": "Who?", "ground_truth": ["Al"], "target_new": "I don't know."}] * 2,
        "locality": [{"question": "Where?", "ground_truth": ["Oslo"]}] * 4,
    }
    contents: dict[type[data.Benchmark], Any] = {
        data.ZsRE: [zsre] * 2, data.KnowEditZsRE: knowedit, data.WikiCounterfact: knowedit, data.WikiRecent: knowedit,
        data.WikiBio: [{"text": "Jo Doe is", "labels": "a poet.", "concept": "jo doe", "locality": {"R": [probe]}}] * 2,
        data.ConvSent: [{"ent": " Jo", "pos": ["good "], "neg": [" bad"]}, {"ent": "Al", "pos": ["ok"], "neg": ["no"]}],
        data.Sanitation: sanitation, data.CounterFact: [original, original], data.MQuAKE: [mquake],
    }  # fmt: skip
    targets = [
        Target(
            kind.__name__, _write(folder / kind.__name__, "data.json", content), ("data.json",), _reading(kind), False
        )
        for kind, content in contents.items()
    ]
    targets.append(
        Target(
            "CounterFact, compact", _write(folder / "compact", "data.json", [compact] * 2), ("data.json",),
            _reading(data.CounterFact), False,
        )
    )  # fmt: skip
    request = {
        "prompt": "Ann Poe works for",
        "target": "Acme",
        "subject": "Ann Poe",
        "ground_truth": "Initech",
        "id": "1",
    }
    facts = [{"subject": "Ann Poe", "prompt": "Ann Poe works for", "attribute": "Acme"}] * 2
    return [
        *targets,
        Target(
            "requests", _write(folder / "requests", "data.jsonl", [request] * 3), ("data.jsonl",),
            lambda path: data.read_requests(path / "data.jsonl"), False,
        ),
        Target(
            "known facts", _write(folder / "known", "data.json", facts), ("data.json",),
            lambda path: read_known_facts(path / "data.json"), False,
        ),
        *corpus_targets(folder),
    ]  # fmt: skip


def _reading(kind: type[data.Benchmark]) -> Callable[[Path], object]:
    return lambda path: kind(str(path / "data.json")).read().records


def corpus_targets(folder: Path) -> list[Target]:
    """A corpus in each format."""
    import pyarrow
    from pyarrow import parquet

    texts = [f"Country {number} has a capital by the sea." for number in range(20)]
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "data.txt").write_text("\n\n".join(texts), encoding="utf-8")
    _write(folder / "lines", "data.jsonl", [{"text": text} for text in texts])
    (folder / "parquet").mkdir()
    parquet.write_table(pyarrow.table({"text": texts}), folder / "parquet" / "data.parquet")
    names = {"text": "data.txt", "lines": "data.jsonl", "parquet": "data.parquet"}
    return [
        Target(f"corpus, {name}", folder / name, (file,), _reading_corpus(file), False) for name, file in names.items()
    ]


def _reading_corpus(file: str) -> Callable[[Path], object]:
    return lambda path: list(documents(str(path / file), "text", "train"))


def configuration_targets(folder: Path, model: Path) -> list[Target]:
    """An editor's file, and an experiment of the command line.

    Args:
        folder: Where the files are written.
        model: Folder of a tiny language model.
    """
    editor, experiment = folder / "editor", folder / "experiment"
    for name in (editor, experiment):
        name.mkdir(parents=True)
    shutil.copy(_ROOT / "configs" / "editor" / "rome.yaml", editor / "editor.yaml")
    facts = {"class_path": "lightning_edit.data.WorldFacts", "init_args": {"split": "train", "limit": 2}}
    configured = {
        "model": {
            "class_path": "lightning_edit.modules.HypernetworkEditing",
            "init_args": {
                "language_model": {"name_or_path": str(model)},
                "editor": {"class_path": "lightning_edit.editors.MEND", "init_args": {"sites": [1], "rank": 4}},
            },
        },
        "data": {"train": facts, "batch_size": 2},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 1, "max_epochs": 1, "max_time": "00:00:00:20",
            "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        },
    }  # fmt: skip
    (experiment / "run.yaml").write_text(yaml.safe_dump(configured), encoding="utf-8")
    (experiment / "run.json").write_text(json.dumps(configured), encoding="utf-8")
    return [
        Target("editor's file", editor, ("editor.yaml",), lambda path: _settings(path / "editor.yaml"), False),
        Target("experiment", experiment, ("run.yaml",), lambda path: _run(path / "run.yaml"), False),
        Target("experiment, odd values", experiment, ("run.json",), lambda path: _run(path / "run.json"), False),
    ]


def _settings(path: Path) -> object:
    editor = configured_editor(str(path))
    return type(editor), editor.hyperparameters


def _run(path: Path) -> object:
    """Runs the command line on a configuration.

    Raises:
        ConfigurationError: If the command says what is wrong and ends with a status other than 0.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main(["fit", "--config", str(path)])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    if "Traceback" in output.getvalue():
        raise RuntimeError(output.getvalue()[-300:])
    if status:
        raise ConfigurationError(output.getvalue())
    return "ran"


def artifact_targets(folder: Path) -> list[Target]:
    """An edit, statistics, a checkpoint, a trunk's files and a converted model's manifest."""
    model = language_model("llama")
    generator = torch.Generator().manual_seed(0)
    site = model.layer_map.site(1)
    factors = FactoredDelta(
        torch.randn(site.fan_in, 2, generator=generator), torch.randn(2, site.fan_out, generator=generator)
    )
    requests = [EditRequest("The capital of France is", "Rome", "France", id="france")]
    WeightEdit({site.name: factors}, Provenance.of(model, "MEND", {}, requests)).save(folder / "edit")
    moments = {site.name: torch.eye(site.fan_in)}
    KeyStatistics(moments, Corpus("text", 8, 80, "0"), model.name, model.fingerprint).save(folder / "statistics")
    editor = MEND(sites=[1], rank=4)
    editor.setup(model)
    (folder / "checkpoint").mkdir()
    state = {f"editor.{name}": value for name, value in editor.state_dict().items()}
    entry = {**describe(editor, model, {}), "digest": state_digest(state)}
    momentum = {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
    torch.save({KEY: entry, "state_dict": state, "optimizer_states": [momentum]}, folder / "checkpoint" / "last.ckpt")
    converted = folder / "converted"
    converted.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (converted / name).write_bytes(random.Random(name).randbytes(2000))
    write_manifest(converted / "manifest.json", {"source": "x"}, ["model.safetensors", "tokenizer.json"])
    _open_trunk(folder / "trunk")
    return [
        Target("edit", folder / "edit", ("edit.json", "edit.safetensors"), _loaded_edit, True),
        Target(
            "statistics", folder / "statistics", ("statistics.json", "statistics.safetensors"), _loaded_statistics, True
        ),
        Target("checkpoint", folder / "checkpoint", ("last.ckpt",), _loaded_checkpoint, True),
        Target(
            "converted model",
            converted,
            ("manifest.json", "model.safetensors", "tokenizer.json"),
            _loaded_manifest,
            True,
        ),
        Target("trunk", folder / "trunk", ("trunk.json", "states", "references"), _open_trunk, True),
    ]


def _loaded_edit(folder: Path) -> object:
    edit = load_edit(folder)
    deltas = edit.weight_deltas().items()
    return edit.provenance, [(site, name, value.tolist()) for site, d in deltas for name, value in d.tensors().items()]


def _loaded_statistics(folder: Path) -> object:
    statistics = KeyStatistics.load(folder)
    return statistics.corpus, statistics.fingerprint, state_digest(statistics.moments)


def _loaded_checkpoint(folder: Path) -> object:
    content = read_checkpoint(folder / "last.ckpt")
    return content[KEY], state_digest(content["state_dict"]), state_digest(content["optimizer_states"][0])


def _loaded_manifest(folder: Path) -> object:
    try:
        read_manifest(folder / "manifest.json")
    except ValueError as error:
        raise ConfigurationError("it is converted again") from error
    return [(folder / name).read_bytes() for name in ("model.safetensors", "tokenizer.json")]


def _open_trunk(folder: Path) -> object:
    entries = [Entry((1, 2, 3), 3, 1), Entry((4, 5), 2, 0)]
    generator = torch.Generator().manual_seed(1)
    kept = [Kept(torch.randn(3, 4, generator=generator), torch.randn(1, 4, generator=generator))]
    kept.append(Kept(torch.randn(2, 4, generator=generator)))
    identity = Identity("tiny", "f", "t", 1, "float32", "x")
    store, _ = open_or_build(
        folder, identity, entries, (4, 4), torch.float32,
        lambda: zip([entry.key for entry in entries], kept, strict=True),
    )  # fmt: skip
    stored = [store.get(entry.key) for entry in entries]
    return [(one.states.tolist(), None if one.reference is None else one.reference.tolist()) for one in stored if one]
