"""WikiBigEdit: half a million real changes of Wikidata in chronological order (Thede et al. 2025, arXiv 2503.05683)."""

from __future__ import annotations

from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.records import EditRecord, Probe, ProbeKind

_SPLITS = (
    "20240201_20240220", "20240220_20240301", "20240301_20240320", "20240320_20240401", "20240401_20240501",
    "20240501_20240601", "20240601_20240620", "20240620_20240701",
)  # fmt: skip


class WikiBigEdit(Benchmark):
    """Questions about facts that changed or appeared between two dates.

    ``rephrase`` is a generalization probe, and so is ``personas``, the question in the voice of a persona (group
    "Persona"); ``mhop`` is a portability probe (group "Multi_Hop"), and ``loc`` a locality probe (group
    "Neighborhood"). There is no old answer. Fields that are missing, null, NaN or not text add no probe.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: The two dates of a file, such as "20240201_20240220".
        limit: Read at most this many records.
    """

    files = {split: (f"wiki_big_edit_{split}.json",) for split in _SPLITS}

    def __init__(self, source: str, split: str = _SPLITS[0], limit: int | None = None) -> None:
        super().__init__(source, split, limit)

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"wikibigedit-{entry.index}"
        prompt, target = _text(entry, "update"), _text(entry, "ans")
        request = make_request(entry, prompt, target, _text(entry, "subject") or None, None, id)
        if request is None:
            return []
        answers = ((request.target,),)
        probes: list[Probe] = []
        for name, group in (("rephrase", ""), ("personas", "Persona")):
            if question := _text(entry, name):
                probes += make_probe(entry, question, answers, ProbeKind.GENERALIZATION, group)
        for name, answer, kind, group in (
            ("mhop", "mhop_ans", ProbeKind.PORTABILITY, "Multi_Hop"),
            ("loc", "loc_ans", ProbeKind.LOCALITY, "Neighborhood"),
        ):
            question, expected = _text(entry, name), _text(entry, answer)
            if question and expected:
                probes += make_probe(entry, question, ((expected,),), kind, group)
        return [EditRecord(id, (request,), tuple(probes))]


def _text(entry: Entry, name: str) -> str:
    """Returns a field's text, or "" if it has none."""
    return entry.text(name) if name in entry and isinstance(entry.values[name], str) else ""
