"""AKEW: the same edits as triplets and as unstructured text (Wu et al. 2024, arXiv 2402.18909)."""

from __future__ import annotations

from typing import Literal, get_args

from lightning_edit import ranges
from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind

Form = Literal["structured", "unstructured"]


class AKEW(Benchmark):
    """CounterFact, MQuAKE-CF and WikiUpdate with a text for each edit.

    The prompt is the rewrite's ``prompt`` with the subject filled in. Structured targets are ``target_new`` (or
    ``answer_new``), unstructured ones the text ``fact_new_uns``. The rewrite's ``question`` and the
    ``paraphrase_prompts`` are rephrases; ``neighborhood_prompts`` are locality probes (group "Neighborhood");
    MQuAKE's ``questions`` are portability probes (group "Multi_Hop"). With unstructured targets, the triplets that
    the text states (``unsfact_triplets_GPT``) are portability probes (group "Triplet").

    A MQuAKE record may hold several rewrites, which are edited together.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: "counterfact", "mquake" or "wikiupdate".
        limit: Read at most this many records.
        form: Which target the requests use.
    """

    files = {"counterfact": ("CounterFact.json",), "mquake": ("MQuAKE-CF.json",), "wikiupdate": ("WikiUpdate.json",)}

    def __init__(
        self, source: str, split: str = "counterfact", limit: int | None = None, form: Form = "structured"
    ) -> None:
        super().__init__(source, split, limit)
        ranges.one_of(get_args(Form), type(self).__name__, form=form)
        self.form = form

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"akew-{entry.number('case_id') if 'case_id' in entry else entry.index}"
        several = isinstance(entry.values.get("requested_rewrite"), list)
        rewrites = entry.children("requested_rewrite") if several else [entry.child("requested_rewrite")]
        requests: list[EditRequest] = []
        probes: list[Probe] = []
        for place, rewrite in enumerate(rewrites):
            name = f"{id}-{place}" if several else id
            request = self._request(rewrite, name)
            if request is not None:
                requests.append(request)
                probes += self._probes_of_rewrite(rewrite, request)
        if not requests:
            return []
        probes += self._probes_of_record(entry, requests[0])
        return [EditRecord(id, tuple(requests), tuple(probes))]

    def _request(self, rewrite: Entry, id: str) -> EditRequest | None:
        subject = rewrite.text("subject")
        prompt = _filled(rewrite, "prompt", subject)
        short = rewrite.text("answer_new") if "answer_new" in rewrite else rewrite.child("target_new").text("str")
        truth = rewrite.text("answer_true") if "answer_true" in rewrite else rewrite.child("target_true").text("str")
        target = rewrite.text("fact_new_uns") if self.form == "unstructured" else short
        return make_request(rewrite, prompt, target, subject, truth, id)

    def _probes_of_rewrite(self, rewrite: Entry, request: EditRequest) -> list[Probe]:
        probes: list[Probe] = []
        if "question" in rewrite and rewrite.text("question") != request.prompt:
            probes += make_probe(rewrite, rewrite.text("question"), ((request.target,),), ProbeKind.GENERALIZATION)
        if self.form == "unstructured" and "unsfact_triplets_GPT" in rewrite:
            for triplet in rewrite.children("unsfact_triplets_GPT"):
                prompt = _filled(triplet, "prompt", triplet.text("subject"))
                probes += make_probe(triplet, prompt, triplet.answers("target"), ProbeKind.PORTABILITY, "Triplet")
        return probes

    def _probes_of_record(self, entry: Entry, request: EditRequest) -> list[Probe]:
        probes: list[Probe] = []
        truth = request.ground_truth
        for prompt in entry.texts("paraphrase_prompts") if "paraphrase_prompts" in entry else ():
            probes += make_probe(entry, prompt, ((request.target,),), ProbeKind.GENERALIZATION, rival=truth)
        for prompt in entry.texts("neighborhood_prompts") if "neighborhood_prompts" in entry and truth else ():
            probes += make_probe(entry, prompt, ((str(truth),),), ProbeKind.LOCALITY, "Neighborhood")
        if "questions" in entry:
            names = tuple(dict.fromkeys([entry.text("new_answer"), *entry.texts("new_answer_alias")]))
            for question in entry.texts("questions"):
                probes += make_probe(entry, question, (names,), ProbeKind.PORTABILITY, "Multi_Hop")
        return probes


def _filled(entry: Entry, name: str, subject: str) -> str:
    """Fills the subject into the one "{}" of a template.

    Raises:
        DataFormatError: If it does not hold exactly one "{}".
    """
    template = entry.text(name)
    if template.count("{}") != 1:
        raise entry.error(name, f"expected exactly one '{{}}' for the subject, found {template!r}")
    return template.replace("{}", subject)
