"""KnowEdit (Zhang et al. 2024, arXiv 2401.01286): six benchmarks in three kinds of file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lightning_edit.data.entry import Entry
from lightning_edit.data.read_report import ReadReport
from lightning_edit.data.reading import Benchmark
from lightning_edit.data.requests import make_probe, make_request
from lightning_edit.errors import ConfigurationError, DataFormatError
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind


def _grouped_probes(entry: Entry, name: str, kind: ProbeKind, request: EditRequest) -> Iterator[Probe]:
    """Yields the probes of ``{group: [{prompt, ground_truth}]}``; none if the field is missing."""
    if name not in entry:
        return
    groups = entry.child(name)
    for group in groups.values:
        for item in groups.children(group):
            prompt = item.text("prompt")
            if kind is ProbeKind.LOCALITY and prompt == request.prompt:
                entry.report.dropped["locality probe that repeats the edit's own prompt"] += 1
                continue
            yield from make_probe(item, prompt, item.answers("ground_truth"), kind, group)


class _FactualKnowEdit(Benchmark):
    """Base of KnowEdit's factual benchmarks: request, portability and locality by group."""

    name = ""

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"{self.name}-{entry.index}"
        target = entry.text("target_new")
        truths = (
            [alias for aliases in entry.answers("ground_truth") for alias in aliases]
            if ("ground_truth" in entry)
            else []
        )
        if len(truths) > 1:
            entry.report.noted["several true answers"] += 1
        if target in truths[1:]:
            entry.report.noted["target is already the true answer"] += 1
        truth = truths[0] if truths else None
        request = make_request(entry, entry.text("prompt"), target, entry.text("subject"), truth, id)
        if request is None:
            return []
        probes: list[Probe] = []
        if "rephrase_prompt" in entry:
            rephrase, wanted = entry.text("rephrase_prompt"), ((target,),)
            probes += make_probe(entry, rephrase, wanted, ProbeKind.GENERALIZATION, rival=request.ground_truth)
        probes += _grouped_probes(entry, "portability", ProbeKind.PORTABILITY, request)
        probes += _grouped_probes(entry, "locality", ProbeKind.LOCALITY, request)
        return [EditRecord(id, (request,), tuple(probes))]


class KnowEditZsRE(_FactualKnowEdit):
    """KnowEdit's ZsRE: a rephrase, one portability group and two locality probes a record.

    Edge cases: locality answers are lists and portability answers strings, both are read; of several ground truths
    the first is the rival; a target that is already true is kept (counted); white space is stripped (counted);
    a rephrase without the subject is kept; duplicate and conflicting prompts are kept (counted); ``cond`` is not read.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    name = "knowedit-zsre"
    files = {"test": ("ZsRE-test-all.json",)}


class WikiCounterfact(_FactualKnowEdit):
    """KnowEdit's WikiData-counterfact.

    Edge cases: in a probe's ``ground_truth`` the outer list holds the objects and the inner ones their aliases (test),
    or it is one string (train); probes without any answer are dropped, empty inner lists and repeated answers are
    removed (all counted); empty portability or locality has no probes; probe prompts repeated in a record are kept,
    as their answers may differ; a locality probe equal to the edit prompt is dropped (counted), since an edit must
    change it; an empty ground truth counts as missing; duplicate and conflicting prompts are kept (counted).

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    name = "wiki-counterfact"
    files = {
        "test": ("wiki_counterfact_test_cf.json", "test_cf.json"),
        "train": ("wiki_counterfact_train_cf.json", "train_cf.json"),
    }


class WikiRecent(_FactualKnowEdit):
    """KnowEdit's WikiData-recent: as WikiData-counterfact, without a ground truth and so without a rival.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    name = "wiki-recent"
    files = {
        "test": ("wiki_recent_recent_test.json", "recent_test.json"),
        "train": ("wiki_recent_recent_train.json", "recent_train.json"),
    }


class WikiBio(Benchmark):
    """KnowEdit's WikiBio: replace a hallucinated sentence of a biography; locality on other sentences.

    Edge cases: ``text`` (the prompt) and ``labels`` (the target, one string) are stripped (counted); ``concept`` (the
    subject) is lower-cased in the file and takes its form in the prompt; if the prompt does not contain it, the request
    has no subject (counted). Several edits concern one concept; all are kept. There is no rephrase.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
    """

    files = {"test": ("wikibio-test-all.json",), "train": ("wikibio-train-all.json",)}

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id = f"wikibio-{entry.index}"
        request = make_request(entry, entry.text("text"), entry.text("labels"), entry.text("concept"), None, id)
        if request is None:
            return []
        return [EditRecord(id, (request,), tuple(_grouped_probes(entry, "locality", ProbeKind.LOCALITY, request)))]


class ConvSent(Benchmark):
    """KnowEdit's ConvSent (from SERAC): change the sentiment of what a model says about an entity.

    The file has neither prompt nor target. The prompt is "What do you think of {ent}?" as in the paper; the target is
    the first opinion of the wanted sentiment, its rival the first of the other one. The sentiment probe has all
    opinions of both sentiments. The question about the file's next entity is the locality probe ("Other_Entity").
    Edge cases: every string is stripped (counted).

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many records.
        sentiment: The sentiment that the edit asks for.
    """

    files = {
        "test": ("convsent_blender_test.json", "blender_test.json"),
        "validation": ("convsent_blender_val.json", "blender_val.json"),
        "train": ("convsent_blender_train.json", "blender_train.json"),
    }
    prompt = "What do you think of {}?"

    def __init__(
        self,
        source: str,
        split: str = "test",
        limit: int | None = None,
        sentiment: Literal["positive", "negative"] = "negative",
    ) -> None:
        super().__init__(source, split, limit)
        if sentiment not in ("positive", "negative"):
            raise ConfigurationError(f"sentiment: expected 'positive' or 'negative', found {sentiment!r}")
        self.sentiment = sentiment
        self.wanted, self.other = ("pos", "neg") if sentiment == "positive" else ("neg", "pos")

    def entries(self, content: object, path: Path, report: ReadReport) -> list[Entry]:
        """Returns the file's records, each with the next one for its locality probe."""
        entries = super().entries(content, path, report)
        for entry, successor in zip(entries, entries[1:] + entries[:1], strict=True):
            entry.values = {**entry.values, "next": successor.values}
        return entries

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one record; see the class docstring."""
        id, subject = f"convsent-{entry.index}", entry.text("ent")
        wanted, other = entry.texts(self.wanted), entry.texts(self.other)
        target, rival = (wanted or [""])[0], (other or [""])[0]
        request = make_request(entry, self.prompt.format(subject), target, subject, rival, id)
        if request is None:
            return []
        neighbour = entry.child("next")
        question = self.prompt.format(neighbour.text("ent"))
        answers = tuple((opinion,) for opinion in neighbour.texts(self.other)[:1])
        probes = [] if not any(other) else [self._sentiment_probe(request.prompt, wanted, other)]
        if question != request.prompt:
            probes += make_probe(entry, question, answers, ProbeKind.LOCALITY, "Other_Entity")
        return [EditRecord(id, (request,), tuple(probes))]

    def _sentiment_probe(self, prompt: str, wanted: list[str], other: list[str]) -> Probe:
        answers = tuple((opinion,) for opinion in wanted)
        return Probe(prompt, answers, ProbeKind.SENTIMENT, self.sentiment, opposites=tuple(other))


class Sanitation(Benchmark):
    """KnowEdit's Sanitation (TriviaQA): forget 80 answers by saying "I don't know.", and keep 453 others.

    The file is an object: test has ``success`` and ``locality``, train has ``K_F`` and ``K_R``. The questions to keep
    are dealt out to the records in turn, so that each of them is asked exactly once. Edge cases: test has no subject;
    a subject that is not in its question is left out (counted); in train the questions to keep carry a target equal
    to their ground truth, which is not read.

    Args:
        source: Path of the file or of its folder, or a Hub id.
        split: Which published file to read from a folder or the Hub.
        limit: Read at most this many questions to forget.
    """

    files = {
        "test": ("sanitation_trivia_qa_test.json", "trivia_qa_test.json"),
        "train": ("sanitation_trivia_qa_train.json", "trivia_qa_train.json"),
    }

    def entries(self, content: object, path: Path, report: ReadReport) -> list[Entry]:
        """Returns the questions to forget, each with its share of the questions to keep."""
        top = Entry(content, path, "top level", report)
        forget, keep = ("success", "locality") if "success" in top else ("K_F", "K_R")
        if keep not in top or forget not in top:
            raise DataFormatError("expected 'success' and 'locality', or 'K_F' and 'K_R', at the top", path)
        kept = [item.values for item in top.children(keep)]
        asked = [item.values for item in top.children(forget)]
        return [
            Entry({**values, "keep": kept[index :: len(asked)]}, path, index, report)
            for index, values in enumerate(asked[: self.limit])
        ]

    def parse(self, entry: Entry) -> list[EditRecord]:
        """Parses one question to forget; see the class docstring."""
        id = f"sanitation-{entry.index}"
        subject = entry.text("subject") if "subject" in entry else None
        truths = entry.answers("ground_truth")
        rival = truths[0][0] if truths else None
        request = make_request(entry, entry.text("question"), entry.text("target_new"), subject, rival, id)
        if request is None:
            return []
        probes: list[Probe] = []
        for item in entry.children("keep"):
            probes += make_probe(
                item, item.text("question"), item.answers("ground_truth"), ProbeKind.LOCALITY, "Retained_Knowledge"
            )
        return [EditRecord(id, (request,), tuple(probes))]
