"""Requests and probes built from raw fields, with the cleaning rules of all readers."""

from __future__ import annotations

import regex

from lightning_edit.data.entry import Entry
from lightning_edit.errors import RequestError
from lightning_edit.records import EditRequest, Probe, ProbeKind, find_subject


def make_request(
    entry: Entry, prompt: str, target: str, subject: str | None, ground_truth: str | None, id: str
) -> EditRequest | None:
    """Builds a request with the cleaning rules of all readers.

    An empty prompt or target drops the record; a subject that is not in the prompt, ignoring case, is left out; one
    that differs in case takes its form in the prompt. The report counts all of this.
    """
    report = entry.report
    if not prompt or not target:
        report.dropped[f"record with an empty {'target' if prompt else 'prompt'}"] += 1
        return None
    if subject and not _occurs(prompt, subject):
        subject = _surface_form(entry, prompt, subject)
    if ground_truth == target:
        report.noted["target is already the true answer"] += 1
    return EditRequest(prompt, target, subject or None, ground_truth or None, id=id)


def _occurs(prompt: str, subject: str) -> bool:
    try:
        find_subject(prompt, subject)
    except RequestError:
        return False
    return True


def _surface_form(entry: Entry, prompt: str, subject: str) -> str | None:
    # Lower-casing can change the length of a text ("İ"), so the prompt itself is searched.
    for match in regex.finditer(regex.escape(subject), prompt, regex.IGNORECASE | regex.FULLCASE):
        if _occurs(prompt, match.group()):
            entry.report.changed["subject takes its form in the prompt"] += 1
            return str(match.group())
    entry.report.changed["subject not in the prompt left out"] += 1
    return None


def make_probe(
    entry: Entry,
    prompt: str,
    answers: tuple[tuple[str, ...], ...],
    kind: ProbeKind,
    group: str = "",
    rival: str | None = None,
) -> list[Probe]:
    """Builds a probe; one without a prompt or an answer is dropped and counted."""
    if not prompt or not answers:
        entry.report.dropped[f"{kind} probe without {'an answer' if prompt else 'a prompt'}"] += 1
        return []
    return [Probe(prompt, answers, kind, group, rival if rival not in answers[0] else None)]
