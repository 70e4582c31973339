"""MQuAKE multi-hop questions over several edits (Zhong et al. 2023, arXiv 2305.14795)."""

from __future__ import annotations

from lightning_edit.data.counterfact import rewrite_request
from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe
from lightning_edit.records import EditRecord, Probe, ProbeKind


class MQuAKE(Benchmark):
    """Several edits per record, tested with questions that need all of them.

    The multi-hop ``questions`` are portability probes (group "Multi_Hop"), with ``new_answer`` and its aliases as
    acceptable answers and the old ``answer`` as rival; the ``question`` of each rewrite is its rephrase; hops of the
    new chain that no rewrite covers are portability probes (group "Single_Hop").

    Edge cases: an empty ``new_answer_alias`` adds nothing; the "{}" of the prompt marks the subject;
    ``orig`` (triples) is not read.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    files = {"test": ("MQuAKE-CF-3k-v2.json", "MQuAKE-CF-3k.json", "MQuAKE-hard.json"), "hard": ("MQuAKE-hard.json",)}

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"mquake-{entry.number('case_id') if 'case_id' in entry else entry.index}"
        rewrites = entry.children("requested_rewrite")
        requests = tuple(rewrite_request(rewrite, f"{id}-{place}") for place, rewrite in enumerate(rewrites))
        probes: list[Probe] = []
        for rewrite, request in zip(rewrites, requests, strict=True):
            question, target = rewrite.text("question"), ((request.target,),)
            probes += make_probe(entry, question, target, ProbeKind.GENERALIZATION, rival=request.ground_truth)
        answers = (tuple(dict.fromkeys([entry.text("new_answer"), *entry.texts("new_answer_alias")])),)
        for question in entry.texts("questions"):
            probes += make_probe(
                entry, question, answers, ProbeKind.PORTABILITY, "Multi_Hop", rival=entry.text("answer")
            )
        asked = {rewrite.text("question") for rewrite in rewrites}
        for hop in entry.children("new_single_hops"):
            if hop.text("question") not in asked:
                names = (tuple(dict.fromkeys([hop.text("answer"), *hop.texts("answer_alias")])),)
                probes += make_probe(entry, hop.text("question"), names, ProbeKind.PORTABILITY, "Single_Hop")
        return [EditRecord(id, requests, tuple(probes))]
