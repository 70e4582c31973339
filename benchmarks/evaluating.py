"""Evaluations that resume after an interruption."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_edit.callbacks.report import prediction
from lightning_edit.editors import Editor
from lightning_edit.errors import ConfigurationError
from lightning_edit.files import replace_file
from lightning_edit.modules import Evaluator
from lightning_edit.records import EditRecord

STAGES = ("asking the unedited model, per record", "editing, per record", "asking the edited model, per record")


def settings_of(editor: Editor) -> dict[str, Any]:
    """An editor's settings, without the folder of its statistics, which differs between machines."""
    return {name: value for name, value in editor.hyperparameters.items() if name != "statistics"}


def evaluate(
    evaluator: Evaluator, editor: Editor, records: list[EditRecord], path: Path, size: int, joint: int = 1
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Evaluates the records that the file lacks; returns all predictions, and the seconds per stage of the new ones.

    Args:
        evaluator: Evaluates the probes.
        editor: The editor.
        records: The records.
        path: File of predictions, one per line, appended to after every batch.
        size: Records in a batch.
        joint: Records edited jointly.

    Raises:
        ConfigurationError: If the file was written with other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _claim(path, {"editor": settings_of(editor), "evaluation": asdict(evaluator.settings), "joint": joint})
    chunks = [records[start : start + size] for start in range(0, len(records), size)]
    lines = _whole_chunks(path, [{record.id for record in chunk} for chunk in chunks])
    done = {line["record"] for line in lines}
    spent = dict.fromkeys(STAGES, 0.0)
    measured = 0
    for number, chunk in enumerate(chunks):
        if chunk[0].id in done:
            continue
        groups = [chunk[start : start + joint] for start in range(0, len(chunk), joint)]
        begin = time.perf_counter()
        with evaluator.prepared(editor, chunk):
            start = time.perf_counter()
            edits = editor.edit_each_group(
                evaluator.model,
                [[request for record in group for request in record.requests] for group in groups],
                passes=evaluator.passes,
            )
            edited = time.perf_counter()
            outcomes = evaluator.evaluate(chunk, edits, [index // joint for index in range(len(chunk))])
        spent["asking the unedited model, per record"] += start - begin
        spent["editing, per record"] += edited - start
        spent["asking the edited model, per record"] += time.perf_counter() - edited
        measured += len(chunk)
        fresh = [prediction(outcome, evaluator.model.encoder.decode) for outcome in outcomes]
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in fresh)
        lines += fresh
        print(f"{min((number + 1) * size, len(records))}/{len(records)} records", flush=True)
    return lines, {name: round(value / measured, 3) for name, value in spent.items() if measured}


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings beside a file of predictions; rejects a file written with other settings."""
    settings_path = path.with_suffix(".settings.json")
    if path.exists() and (
        not settings_path.exists() or json.loads(settings_path.read_text()) != json.loads(json.dumps(settings))
    ):
        raise ConfigurationError(f"{path} was measured with other settings; delete it, or name another folder")
    settings_path.write_text(json.dumps(settings, indent=1) + "\n")


def _whole_chunks(path: Path, chunks: list[set[str]]) -> list[dict[str, Any]]:
    """The predictions in a file for the chunks that are complete.

    Those of incomplete chunks, left by an interrupted run, are removed from the file; those of other records are kept.
    """
    if not path.exists():
        return []
    *texts, rest = path.read_text(encoding="utf-8").split("\n")
    lines: list[dict[str, Any]] = [json.loads(text) for text in texts]
    # The last record of a truncated file may lack lines.
    known = {line["record"] for line in lines} - ({lines[-1]["record"]} if lines and rest else set())
    broken = {id for chunk in chunks if not chunk <= known for id in chunk}
    kept = [line for line in lines if line["record"] not in broken]
    with replace_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
    wanted = {id for chunk in chunks for id in chunk}
    return [line for line in kept if line["record"] in wanted]


def summary(lines: list[dict[str, Any]], ids: set[str]) -> dict[str, Any]:
    """Means per kind and group over the probes of some records."""
    values: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if line["record"] in ids:
            key = f"{line['kind']}/{line['group']}".rstrip("/").lower()
            for name, value in line["measures"].items():
                values.setdefault(key, {}).setdefault(name, []).append(value)
    means = {
        key: {name: round(sum(numbers) / len(numbers), 4) for name, numbers in sorted(measures.items())}
        for key, measures in sorted(values.items())
    }
    return {"records": len(ids), **means}


def routed_at(lines: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """The predictions of a routed editor with a higher threshold: probes scored below it get the unedited answer."""
    routed = []
    for line in lines:
        measures = line["measures"]
        if measures["scope_score"] < threshold:
            before = {name: measures[f"{name}_before"] for name in measures if f"{name}_before" in measures}
            unchanged = {"self_agreement": 1.0, "generation_agreement": 1.0, "kl_divergence": 0.0, "scope_hit": 0.0}
            measures = {**measures, **before, **{name: unchanged[name] for name in unchanged if name in measures}}
        routed.append({**line, "measures": measures})
    return routed
