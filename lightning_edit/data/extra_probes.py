"""Probes in the extra fields of extended and flat files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lightning_edit.data.entry import Entry
from lightning_edit.data.requests import make_probe
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind

EXTRA_PROBES = {
    "locality_prompt": (ProbeKind.LOCALITY, "locality_ground_truth", ""),
    "portability_prompt": (ProbeKind.PORTABILITY, "portability_ground_truth", ""),
    "ood_rephrase": (ProbeKind.GENERALIZATION, "", "ood"),
}
"""Probe fields of extended and flat files: prompt to kind, answer field ("": the target) and group."""
_DISTRACTING = "distracting_neighborhood_prompts"
_UNRELATED = "unrelated_relation"
_INVERSE = "inverse question"
_ALTERNATIVE = "alternative_subject"
_ALIASING = "Subject_Aliasing"


def with_extra_probes(records: Iterable[EditRecord], entry: Entry) -> list[EditRecord]:
    """Adds probes from the extra fields of extended files to the first record of an entry.

    Reads, unless the benchmark's own reader did:

    - "portability" and "locality" by group, and the flat fields of :data:`EXTRA_PROBES`;
    - a "portability" with "New Question" and "New Answer" (Reasoning);
    - "alter_subject_question", or "alternative_subject" in the prompt's template (portability, Subject_Aliasing), to
      which the answer is the target;
    - "inverse question" (portability, Logical_Generalization), to which the answer is the subject;
    - "unrelated_relation" with "question" and "object" (locality, Other_Attribution);
    - "distracting_neighborhood_prompts" (locality, Distracting_Neighborhood): objects of prompt and target, or texts to
      which the answer is the one before the edit.
    """
    kept = list(records)
    if not kept:
        return []
    probes = _without_own_prompts(entry, kept[0], _extra_probes(entry, kept[0].requests[0]))
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


def _extra_probes(entry: Entry, request: EditRequest) -> Iterator[Probe]:
    target = request.target
    yield from _portability_of_extended_files(entry, request)
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
    if entry.is_unread(_UNRELATED) and isinstance(entry.values[_UNRELATED], dict):
        unrelated = entry.child(_UNRELATED)
        answers = unrelated.answers("object")
        yield from make_probe(unrelated, unrelated.text("question"), answers, ProbeKind.LOCALITY, "Other_Attribution")
    yield from _distracting(entry, request)


def _portability_of_extended_files(entry: Entry, request: EditRequest) -> Iterator[Probe]:
    """Yields the probes of the paper's extended ZsRE and CounterFact files (Yao et al. 2023)."""
    kind, target = ProbeKind.PORTABILITY, ((request.target,),)
    if entry.is_unread("portability") and _is_question(entry.values["portability"]):
        hop = entry.child("portability")
        yield from make_probe(hop, hop.text("New Question"), hop.answers("New Answer"), kind, "Reasoning")
    if _is_unread_text(entry, "alter_subject_question"):
        yield from make_probe(entry, entry.text("alter_subject_question"), target, kind, _ALIASING)
        if _is_unread_text(entry, _ALTERNATIVE):
            entry.text(_ALTERNATIVE)  # stands in the question
    elif _is_unread_text(entry, _ALTERNATIVE) and isinstance(entry.values.get("requested_rewrite"), dict):
        template = entry.child("requested_rewrite").text("prompt")
        yield from make_probe(entry, template.replace("{}", entry.text(_ALTERNATIVE)), target, kind, _ALIASING)
    if _is_unread_text(entry, _INVERSE) and request.subject is not None:
        yield from make_probe(entry, entry.text(_INVERSE), ((request.subject,),), kind, "Logical_Generalization")


def _distracting(entry: Entry, request: EditRequest) -> Iterator[Probe]:
    if not entry.is_unread(_DISTRACTING):
        return
    content = entry.values[_DISTRACTING]
    if _is_list_of(dict, content):
        for item in entry.children(_DISTRACTING):
            yield from make_probe(
                item, item.text("prompt"), item.answers("target"), ProbeKind.LOCALITY, "Distracting_Neighborhood"
            )
    elif _is_list_of(str, content) and request.ground_truth is not None:
        for prompt in entry.texts(_DISTRACTING):
            answers = ((request.ground_truth,),)
            kind, group = ProbeKind.LOCALITY, "Distracting_Neighborhood"
            yield from make_probe(entry, prompt, answers, kind, group, rival=request.target)


def _is_unread_text(entry: Entry, name: str) -> bool:
    return entry.is_unread(name) and isinstance(entry.values[name], str)


def _is_question(value: object) -> bool:
    return isinstance(value, dict) and "New Question" in value


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)
