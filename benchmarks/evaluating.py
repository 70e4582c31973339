"""Evaluations that go on where they were stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning_edit.callbacks.report import prediction
from lightning_edit.editors import Editor
from lightning_edit.modules import Evaluator
from lightning_edit.records import EditRecord

STAGES = ("asking the unedited model, per record", "editing, per record", "asking the edited model, per record")


def evaluate(
    evaluator: Evaluator, editor: Editor, records: list[EditRecord], path: Path, size: int, joint: int = 1
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The predictions of all records, going on behind those that are in the file, and seconds of the new ones, if any.

    Args:
        evaluator: Asks the probes.
        editor: The editor.
        records: The records.
        path: File of predictions, a line each, that is added to after every batch.
        size: Records in a batch.
        joint: Records edited jointly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {line["record"] for line in lines}
    spent = dict.fromkeys(STAGES, 0.0)
    measured = 0
    for at in range(0, len(records), size):
        chunk = records[at : at + size]
        if all(record.id in done for record in chunk):
            continue
        groups = [chunk[start : start + joint] for start in range(0, len(chunk), joint)]
        begin = time.perf_counter()
        with evaluator.prepared(editor, chunk):
            start = time.perf_counter()
            edits = editor.edit_each_group(
                evaluator.model, [[request for record in group for request in record.requests] for group in groups]
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
        print(f"{at + len(chunk)}/{len(records)} records", flush=True)
    return lines, {name: round(value / measured, 3) for name, value in spent.items() if measured}


def summary(lines: list[dict[str, Any]], ids: set[str]) -> dict[str, Any]:
    """Means per kind and group over the probes of some records."""
    values: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if line["record"] in ids:
            key = f"{line['kind']}/{line['group']}".rstrip("/").lower()
            for name, value in line["measures"].items():
                values.setdefault(key, {}).setdefault(name, []).append(value)
    means = {
        key: {name: round(sum(found) / len(found), 4) for name, found in sorted(own.items())}
        for key, own in sorted(values.items())
    }
    return {"records": len(ids), **means}


def routed_at(lines: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """The predictions of an editor with a router, had its threshold been higher: what falls below is not edited."""
    found = []
    for line in lines:
        own = line["measures"]
        if own["scope_probability"] < threshold:
            before = {name: own[f"{name}_before"] for name in ("token_accuracy", "containment")}
            own = {**own, **before, "self_agreement": 1.0, "generation_agreement": 1.0, "scope_hit": 0.0}
        found.append({**line, "measures": own})
    return found
