"""Records read from a file, and counts of everything that was dropped, changed or noted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from lightning_edit.records import EditRecord


@dataclass
class ReadReport:
    """The records read from a file, and counts of what was dropped, changed or noted.

    Args:
        records: The records.
        dropped: Reason to number of records or probes left out.
        changed: Reason to number of values that were corrected.
        noted: Peculiarity to number of occurrences; nothing was changed.
        origin: Where the records come from.
    """

    records: list[EditRecord] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    origin: str = ""

    def summary(self) -> str:
        """Returns a one-line summary."""
        parts = [f"{self.origin}: {len(self.records)} records"]
        for label, counts in (("dropped", self.dropped), ("changed", self.changed), ("noted", self.noted)):
            parts += [f"{label} {reason}: {count}" for reason, count in sorted(counts.items())]
        return "; ".join(parts)


def with_unique_ids(report: ReadReport) -> list[EditRecord]:
    """Returns the records of a report; repeated ids get a number appended."""
    taken: set[str] = set()
    records = []
    for record in report.records:
        name, number = record.id, 1
        while name in taken:
            number += 1
            name = f"{record.id}#{number}"
        taken.add(name)
        if name != record.id:
            report.changed["record id that another record has, numbered"] += 1
            requests = tuple(replace(one, id=name) if one.id == record.id else one for one in record.requests)
            record = replace(record, id=name, requests=requests)
        records.append(record)
    return records


def note_repeated_prompts(report: ReadReport) -> None:
    """Counts prompts shared by several requests, and those with conflicting targets."""
    targets: dict[str, list[str]] = {}
    for record in report.records:
        for request in record.requests:
            targets.setdefault(request.prompt, []).append(request.target)
    repeated = [wanted for wanted in targets.values() if len(wanted) > 1]
    if repeated:
        report.noted["prompts shared by several requests"] = len(repeated)
    if conflicting := sum(len(set(wanted)) > 1 for wanted in repeated):
        report.noted["prompts with conflicting targets"] = conflicting
