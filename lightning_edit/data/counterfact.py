"""CounterFact (Meng et al. 2022, arXiv 2202.05262), in the original and in the compact format."""

from __future__ import annotations

from lightning_edit.data.entry import Entry
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind


class CounterFact(Benchmark):
    """Counterfactual edits. The format is recognised by the field ``requested_rewrite``, which only the original has.

    Original: paraphrase prompts are generalization probes; neighborhood prompts are locality probes (group
    "Neighborhood": true object against the new target), and so are attribute prompts (group "Attribute": subjects that
    do have the new target); generation prompts are fluency probes, each used once. Compact: one rephrase and one
    neighborhood prompt.

    Edge cases: the "{}" of the prompt marks the subject, so it may occur twice; a rephrase with an unrelated lead-in is
    kept as published; neighborhood prompts that contain the subject are kept (counted); repeated generation prompts are
    removed (counted); duplicate prompts are kept (counted).

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    files = {
        "train": ("counterfact-train.json",),
        "validation": ("counterfact-val.json",),
        "test": ("counterfact.json", "counterfact_original_format_1031.json", "multi_counterfact.json"),
    }

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        return self._parse_original(entry) if "requested_rewrite" in entry else self._parse_compact(entry)

    def _parse_compact(self, entry: Entry) -> list[EditRecord]:
        id = f"counterfact-{entry.number('case_id')}"
        target, truth = entry.text("target_new"), entry.text("ground_truth")
        request = make_request(entry, entry.text("prompt"), target, entry.text("subject"), truth, id)
        if request is None:
            return []
        rephrase = make_probe(entry, entry.text("rephrase_prompt"), ((target,),), ProbeKind.GENERALIZATION, rival=truth)
        locality = make_probe(
            entry,
            entry.text("locality_prompt"),
            entry.answers("locality_ground_truth"),
            ProbeKind.LOCALITY,
            "Neighborhood",
            rival=target,
        )
        return [EditRecord(id, (request,), tuple(rephrase + locality))]

    def _parse_original(self, entry: Entry) -> list[EditRecord]:
        id = f"counterfact-{entry.number('case_id')}"
        request = rewrite_request(entry.child("requested_rewrite"), id)
        target, truth = request.target, request.ground_truth or ""
        probes: list[Probe] = []
        for prompt in entry.texts("paraphrase_prompts"):
            probes += make_probe(entry, prompt, ((target,),), ProbeKind.GENERALIZATION, rival=truth)
        for prompt in entry.texts("neighborhood_prompts"):
            if request.subject and request.subject in prompt:
                entry.report.noted["neighborhood prompt contains the subject"] += 1
            probes += make_probe(entry, prompt, ((truth,),), ProbeKind.LOCALITY, "Neighborhood", rival=target)
        for prompt in entry.texts("attribute_prompts"):
            probes += make_probe(entry, prompt, ((target,),), ProbeKind.LOCALITY, "Attribute", rival=truth)
        prompts = entry.texts("generation_prompts")
        unique = list(dict.fromkeys(prompts))
        if len(unique) < len(prompts):
            entry.report.changed["repeated generation prompt removed"] += len(prompts) - len(unique)
        probes += [Probe(prompt, (), ProbeKind.FLUENCY) for prompt in unique]
        return [EditRecord(id, (request,), tuple(probes))]


def rewrite_request(rewrite: Entry, id: str) -> EditRequest:
    """Builds the request of a ``requested_rewrite``, whose prompt has one "{}" for the subject.

    Raises:
        DataFormatError: If the prompt does not hold exactly one "{}".
    """
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    if template.count("{}") != 1:
        raise rewrite.error("prompt", f"expected exactly one '{{}}' for the subject, found {template!r}")
    target = rewrite.child("target_new").text("str")
    truth = rewrite.child("target_true").text("str")
    start = template.index("{}")
    return EditRequest(template.replace("{}", subject), target, subject, truth, start, id)
