"""Probes in the extra fields of extended and flat files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lightning_edit.data.entry import Entry
from lightning_edit.data.requests import make_probe
from lightning_edit.records import EditRecord, Probe, ProbeKind

EXTRA_PROBES = {
    "locality_prompt": (ProbeKind.LOCALITY, "locality_ground_truth", ""),
    "portability_prompt": (ProbeKind.PORTABILITY, "portability_ground_truth", ""),
    "ood_rephrase": (ProbeKind.GENERALIZATION, "", "ood"),
}
"""Probe fields of extended and flat files: prompt to kind, answer field ("": the target) and group."""
_DISTRACTING = "distracting_neighborhood_prompts"


def with_extra_probes(records: Iterable[EditRecord], entry: Entry) -> list[EditRecord]:
    """Adds probes from the extra fields of extended files to the first record of an entry.

    Reads, unless the benchmark's own reader did: "portability" and "locality" by group, the flat fields of
    :data:`EXTRA_PROBES`, and "distracting_neighborhood_prompts" (locality of the group "Distracting_Neighborhood").
    """
    kept = list(records)
    if not kept:
        return []
    probes = _without_own_prompts(entry, kept[0], _extra_probes(entry, kept[0].requests[0].target))
    return [replace(kept[0], probes=kept[0].probes + probes), *kept[1:]]


def _without_own_prompts(entry: Entry, record: EditRecord, probes: Iterable[Probe]) -> tuple[Probe, ...]:
    """Drops locality probes with the prompt of the edit."""
    edited, kept = {request.prompt for request in record.requests}, []
    for probe in probes:
        if probe.kind is ProbeKind.LOCALITY and probe.prompt in edited:
            entry.report.dropped["locality probe that asks the edit itself"] += 1
        else:
            kept.append(probe)
    return tuple(kept)


def _extra_probes(entry: Entry, target: str) -> Iterator[Probe]:
    for kind in (ProbeKind.PORTABILITY, ProbeKind.LOCALITY):
        if entry.is_unread(str(kind)) and isinstance(entry.values[str(kind)], dict):
            groups = entry.child(str(kind))
            for group in groups.values:
                for item in groups.children(group):
                    yield from make_probe(item, item.text("prompt"), item.answers("ground_truth"), kind, group)
    for name, (kind, answer, group) in EXTRA_PROBES.items():
        if entry.is_unread(name) and isinstance(entry.values[name], str):
            answers = entry.answers(answer) if answer else ((target,),)
            yield from make_probe(entry, entry.text(name), answers, kind, group)
    if entry.is_unread(_DISTRACTING) and _is_list_of_objects(entry.values[_DISTRACTING]):
        for item in entry.children(_DISTRACTING):
            yield from make_probe(
                item, item.text("prompt"), item.answers("target"), ProbeKind.LOCALITY, "Distracting_Neighborhood"
            )


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
