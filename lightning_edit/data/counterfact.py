"""CounterFact (Meng et al. 2022, arXiv 2202.05262), in the original and in the compact format."""

from __future__ import annotations

from pathlib import Path

from lightning_edit.data.entry import Entry
from lightning_edit.data.files import read_json
from lightning_edit.data.read_report import ReadReport
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.errors import ConfigurationError, DataFormatError
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
        snippets: ROME's attribute_snippets.json: texts about subjects with a relation and object. Generations are
            compared with those of the new object (consistency), which is not measured without them.
    """

    files = {
        "train": ("counterfact-train.json",),
        "validation": ("counterfact-val.json",),
        "test": ("counterfact.json", "counterfact_original_format_1031.json", "multi_counterfact.json"),
    }

    def __init__(self, source: str, split: str = "test", limit: int | None = None, snippets: str | None = None) -> None:
        super().__init__(source, split, limit)
        self.snippets = snippets
        self._texts: dict[tuple[str, str], tuple[str, ...]] = {}

    def read(self) -> ReadReport:
        """See :meth:`Benchmark.read`.

        Raises:
            DataFormatError: If a file is broken, with the file, the record and the field.
            SourceNotFoundError: If there is no such file.
            ConfigurationError: If the snippets belong to none of the records.
        """
        self._texts = {} if self.snippets is None else read_snippets(Path(self.snippets).expanduser())
        report = super().read()
        if self.snippets is not None and not any(
            probe.references for record in report.records for probe in record.probes
        ):
            raise ConfigurationError(
                f"snippets: {self.snippets} has no texts for the records of {report.origin}; the compact format has no "
                "fluency prompts, so leave snippets out for it"
            )
        return report

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
        rewrite = entry.child("requested_rewrite")
        request = rewrite_request(rewrite, id)
        references = self._references(rewrite)
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
        probes += [Probe(prompt, (), ProbeKind.FLUENCY, references=references) for prompt in unique]
        return [EditRecord(id, (request,), tuple(probes))]

    def _references(self, rewrite: Entry) -> tuple[str, ...]:
        """Returns the texts about subjects with the rewrite's relation and new object."""
        if not self._texts:
            return ()
        key = rewrite.text("relation_id"), rewrite.child("target_new").text("id")
        if key not in self._texts:
            rewrite.report.noted["relation and new object without snippets"] += 1
        return self._texts.get(key, ())


def read_snippets(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Reads ROME's attribute_snippets.json: texts by relation and object.

    Raises:
        DataFormatError: If the file is broken, with the entry and the field.
        SourceNotFoundError: If there is no such file.
    """
    content, report = read_json(path), ReadReport(origin=str(path))
    if not isinstance(content, list):
        raise DataFormatError("expected a list of objects with relation_id, target_id and samples", path)
    texts: dict[tuple[str, str], tuple[str, ...]] = {}
    for index, values in enumerate(content):
        entry = Entry(values, path, index, report)
        key = entry.text("relation_id"), entry.text("target_id")
        texts[key] = texts.get(key, ()) + tuple(sample.text("text") for sample in entry.children("samples"))
    return texts


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
