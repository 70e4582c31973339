"""Every published file is read without an error, with the counts recorded for it."""

import pytest

from lightning_edit.data import (
    ConvSent,
    CounterFact,
    KnowEditZsRE,
    MQuAKE,
    Sanitation,
    WikiBio,
    WikiCounterfact,
    WikiRecent,
    ZsRE,
)
from lightning_edit.records import ProbeKind

EMPTY = "record with an empty target"
NO_ANSWER = "portability probe without an answer"
NO_LOCALITY_ANSWER = "locality probe without an answer"
SHARED = "prompts shared by several requests"
CONFLICT = "prompts with conflicting targets"
ALREADY = "target is already the true answer"

FILES = [
    (ZsRE, "zsre/zsre_mend_train-1k.json", 998, {EMPTY: 2, ALREADY: 21, "several true answers": 22}),
    (ZsRE, "zsre/zsre_mend_train_10000.mzsre_en.json", 10_000, {}),
    (CounterFact, "counterfact/counterfact-train.json", 10_000, {}),
    (CounterFact, "counterfact/counterfact-val.json", 1_919, {}),
    (
        CounterFact,
        "counterfact/counterfact_original_format_1031.json",
        1_031,
        {"neighborhood prompt contains the subject": 9},
    ),
    (MQuAKE, "mquake/MQuAKE-hard.json", 429, {}),
    (
        KnowEditZsRE,
        "knowedit/ZsRE-test-all.json",
        1_301,
        {SHARED: 18, CONFLICT: 10, ALREADY: 43, "several true answers": 25},
    ),
    (
        WikiCounterfact,
        "knowedit/wiki_counterfact_test_cf.json",
        885,
        {NO_ANSWER: 25, NO_LOCALITY_ANSWER: 2, CONFLICT: 18},
    ),
    (WikiCounterfact, "knowedit/wiki_counterfact_train_cf.json", 1_428, {ALREADY: 6, SHARED: 11}),
    (WikiRecent, "knowedit/wiki_recent_recent_train.json", 570, {NO_LOCALITY_ANSWER: 7}),
    (WikiBio, "knowedit/wikibio-test-all.json", 306, {}),
    (WikiBio, "knowedit/wikibio-train-all.json", 464, {}),
    (ConvSent, "knowedit/convsent_blender_test.json", 800, {}),
    (ConvSent, "knowedit/convsent_blender_val.json", 799, {}),
    (Sanitation, "knowedit/sanitation_trivia_qa_test.json", 80, {}),
    (Sanitation, "knowedit/sanitation_trivia_qa_train.json", 80, {}),
]


@pytest.mark.parametrize(("reader", "file", "records", "counts"), FILES, ids=[file for _, file, _, _ in FILES])
def test_reads_with_the_recorded_counts(benchmark_data, reader, file, records, counts):
    split = next(split for split in reader.files)
    report = reader(str(benchmark_data / file), split=split).read()
    assert len(report.records) == records
    counted = report.dropped + report.noted
    assert {reason: counted[reason] for reason in counts} == counts
    assert len({record.id for record in report.records}) == records


def test_every_question_to_keep_is_asked_once(benchmark_data):
    report = Sanitation(str(benchmark_data / "knowedit" / "sanitation_trivia_qa_test.json")).read()
    asked = [probe.prompt for record in report.records for probe in record.probes_of(ProbeKind.LOCALITY)]
    assert len(asked) == 453


def test_portability_groups_of_knowedit_zsre(benchmark_data):
    report = KnowEditZsRE(str(benchmark_data / "knowedit")).read()
    groups = [probe.group for record in report.records for probe in record.probes_of(ProbeKind.PORTABILITY)]
    counts = {group: groups.count(group) for group in set(groups)}
    assert counts == {"Reasoning": 771, "Logical_Generalization": 267, "Subject_Aliasing": 263}


@pytest.mark.parametrize(("reader", "file", "records", "counts"), FILES, ids=[file for _, file, _, _ in FILES])
@pytest.mark.smollm2
def test_every_text_survives_the_tokenizer(benchmark_data, smollm2, reader, file, records, counts):
    split = next(split for split in reader.files)
    for record in reader(str(benchmark_data / file), split=split, limit=300).read().records:
        for request in record.requests:
            text = smollm2.encoder.encode(request.prompt, request.target, request.subject_span)
            assert smollm2.encoder.decode(text.target_ids).strip() == request.target
            if request.subject is not None:
                assert request.subject in smollm2.encoder.decode(text.ids[slice(*text.subject)])
        for probe in record.probes:
            smollm2.encoder.encode(probe.prompt, probe.answer)
