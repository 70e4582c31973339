"""UnKE: edits whose target is a whole paragraph (Deng et al. 2024, arXiv 2405.15349)."""

from __future__ import annotations

from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.records import EditRecord, Probe, ProbeKind


class UnKE(Benchmark):
    """Questions with long, unstructured answers.

    ``para_question`` is the rephrase; each ``sub_question`` with its ``sub_answer`` is a portability probe (group
    "Sub_Question") on a detail of the edited text. The file has no subjects, old answers or locality probes.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    files = {"test": ("final_data_v3.json", "final_data_v2.json")}

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"unke-{entry.number('id') if 'id' in entry else entry.index}"
        target = entry.text("answer")
        request = make_request(entry, entry.text("question"), target, None, None, id)
        if request is None:
            return []
        probes: list[Probe] = make_probe(entry, entry.text("para_question"), ((target,),), ProbeKind.GENERALIZATION)
        questions, answers = entry.texts("sub_question"), entry.texts("sub_answer")
        if len(questions) != len(answers):
            raise entry.error(
                "sub_answer", f"expected {len(questions)}, one for each sub_question, found {len(answers)}"
            )
        for question, answer in zip(questions, answers, strict=True):
            aliases = ((answer,),) if answer else ()
            probes += make_probe(entry, question, aliases, ProbeKind.PORTABILITY, "Sub_Question")
        return [EditRecord(id, (request,), tuple(probes))]
