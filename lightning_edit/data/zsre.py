"""ZsRE question answering in MEND's format (Levy et al. 2017; De Cao et al. 2021; Mitchell et al. 2022)."""

from __future__ import annotations

from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.records import EditRecord, ProbeKind


class ZsRE(Benchmark):
    """Both published variants of MEND's format: the full one, and the re-export with fewer fields.

    Field to meaning: ``src`` is the prompt, ``alt`` the target, ``rephrase`` the generalization probe, ``loc`` and
    ``loc_ans`` a Natural Questions locality probe, ``answers`` the true answers, ``case_id`` the record's name.
    ``pred`` and ``cond`` (the answer of an older model) are not read.

    Edge cases: texts are stripped (counted); a record with an empty ``alt`` is dropped (counted); a subject that is
    not in the prompt is left out (counted); of several answers the first is the rival in probability comparisons;
    a target that is already the true answer is kept (counted); a repeated ``loc`` is kept, as it tests another edit;
    the prefix "nq question:" of the locality prompts is kept as published.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    files = {
        "train": ("zsre_mend_train_10000.mzsre_en.json", "zsre_mend_train.json", "zsre_mend_train-1k.json"),
        "train-1k": ("zsre_mend_train-1k.json",),
        "test": ("zsre_mend_eval.json",),
    }

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"zsre-{entry.number('case_id') if 'case_id' in entry else entry.index}"
        truths = entry.texts("answers") if "answers" in entry else []
        target = entry.text("alt")
        if len(truths) > 1:
            entry.report.noted["several true answers"] += 1
        if target in truths[1:]:
            entry.report.noted["target is already the true answer"] += 1
        truth = truths[0] if truths else None
        request = make_request(entry, entry.text("src"), target, entry.text("subject"), truth, id)
        if request is None:
            return []
        rephrase = make_probe(
            entry, entry.text("rephrase"), ((target,),), ProbeKind.GENERALIZATION, rival=request.ground_truth
        )
        locality = make_probe(
            entry, entry.text("loc"), entry.answers("loc_ans"), ProbeKind.LOCALITY, "Natural_Questions"
        )
        return [EditRecord(id, (request,), tuple(rephrase + locality))]
