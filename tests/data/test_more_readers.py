"""Readers of RippleEdits, WikiBigEdit, AKEW, UnKE and HalluEditBench; the records have the published fields."""

import csv
import json

import pytest

from lightning_edit.data import AKEW, HalluEditBench, RippleEdits, UnKE, WikiBigEdit
from lightning_edit.data.ripple_edits import parts_of
from lightning_edit.errors import ConfigurationError, DataFormatError, SourceNotFoundError
from lightning_edit.records import ProbeKind


@pytest.fixture
def write(tmp_path):
    def writer(content, name="x.json"):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    return writer


def kinds(record):
    return [(str(probe.kind), probe.group, probe.prompt, probe.answers) for probe in record.probes]


@pytest.mark.parametrize(
    ("sentence", "relation", "other", "expected"),
    [
        ("The gender of Ada is female.", "SEX_OR_GENDER", "", ("The gender of Ada is", "Ada", "female")),
        ("Book II follows Book I.", "FOLLOWS", "", ("Book II follows", "Book II", "Book I")),
        ("The capital city of Ada is 2.", "CAPITAL", "", None),
        (
            "The name of the award Who is Who won is What is What.",
            "AWARD_RECEIVED",
            "The name of the award Who is Who won is a medal.",
            ("The name of the award Who is Who won is", "Who is Who", "What is What"),
        ),
        ("Ada likes red tea.", "TASTE", "Ada likes green tea.", ("Ada likes", "", "red tea")),
        ("Ada likes red tea.", "TASTE", "", None),
        ("Something else entirely.", "CAPITAL", "", None),
    ],
)  # fmt: skip
def test_labels_are_cut_out_of_sentences(sentence, relation, other, expected):
    assert parts_of(sentence, relation, other) == expected


def query(prompt, *answers):
    return {
        "prompt": prompt, "answers": [{"value": names[0], "aliases": list(names[1:])} for names in answers],
        "query_type": "regular", "subject_id": "Q1", "relation": "MOTHER", "target_ids": ["Q2"], "phrase": None,
    }  # fmt: skip


def ripple(**changes):
    sentence = "The name of the country of citizenship of Ada Quill is {}."
    test = {"test_queries": [query("The name of the mother of Ada Quill is", ("Ines", "I. Quill"))]}
    tests = {**test, "test_condition": "OR", "condition_queries": [query("x", ("y",))]}
    groups = ["Logical_Generalization", "Compositionality_I", "Compositionality_II", "Forgetfulness"]
    return {
        "example_type": "popular",
        "edit": {
            "prompt": sentence.format("Norlandia"), "subject_id": "Q1", "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q2",
            "original_fact": {"prompt": sentence.format("Sudmark"), "subject_id": "", "relation": "", "target_id": ""},
        },
        "Relation_Specificity": [tests],
        "Subject_Aliasing": [{**tests, "test_queries": [query("A. Quill is from", ("Norlandia",), ("The North",))]}],
        **{group: [] for group in groups},
        **changes,
    }  # fmt: skip


def test_ripple_edits(write):
    report = RippleEdits(write([ripple()])).read()
    [record] = report.records
    [request] = record.requests
    assert (request.prompt, request.target, request.subject, request.ground_truth) == (
        "The name of the country of citizenship of Ada Quill is", "Norlandia", "Ada Quill", "Sudmark"
    )  # fmt: skip
    assert kinds(record) == [
        ("portability", "Subject_Aliasing", "A. Quill is from", (("Norlandia",), ("The North",))),
        ("locality", "Relation_Specificity", "The name of the mother of Ada Quill is", (("Ines", "I. Quill"),)),
    ]
    assert report.noted["field 'Relation_Specificity.condition_queries' not read"] == 1


def test_ripple_edits_that_say_nothing_are_dropped(write):
    same = ripple()
    same["edit"]["prompt"] = same["edit"]["original_fact"]["prompt"]
    unknown = ripple()
    unknown["edit"] = {"prompt": "Nobody knows.", "relation": "CAPITAL", "subject_id": "", "target_id": ""}
    report = RippleEdits(write([ripple(), same, unknown])).read()
    assert len(report.records) == 1
    assert report.dropped == {
        "edit whose sentence changes nothing": 1,
        "edit whose sentence is cut by no template": 1,
    }


def test_wiki_big_edit(tmp_path):
    record = {
        "tag": "update", "subject": "Ada Quill", "update": "Where is Ada Quill from?", "rephrase": "Ada Quill's home?",
        "personas": "Hey, where's Ada Quill from?", "ans": "Norlandia", "loc": "Where is Bo from?",
        "loc_ans": "Westland",
        "mhop": "The capital of Ada Quill's home?", "mhop_ans": "Nordheim",
    }  # fmt: skip
    blank = {**record, "tag": float("nan"), "personas": None, "loc": float("nan"), "mhop": None, "rephrase": ""}
    path = tmp_path / "wiki_big_edit_20240201_20240220.json"
    path.write_text(json.dumps([record, blank]))
    report = WikiBigEdit(str(tmp_path)).read()
    full, bare = report.records
    assert kinds(full) == [
        ("generalization", "", "Ada Quill's home?", (("Norlandia",),)),
        ("generalization", "Persona", "Hey, where's Ada Quill from?", (("Norlandia",),)),
        ("portability", "Multi_Hop", "The capital of Ada Quill's home?", (("Nordheim",),)),
        ("locality", "Neighborhood", "Where is Bo from?", (("Westland",),)),
    ]
    assert kinds(bare) == []
    assert bare.requests[0].subject == "Ada Quill"
    assert full.id != bare.id


def rewrite(**changes):
    return {
        "prompt": "{} is a citizen of", "target_new": {"str": "Norlandia", "id": "Q1"}, "subject": "Ada Quill",
        "target_true": {"str": "Sudmark", "id": "Q2"}, "question": "Where is Ada Quill from?",
        "fact_new_uns": "Norlandia is home to Ada Quill.", "verify_unsfact_GPT": True,
        "unsfact_triplets_GPT": [{"subject": "Norlandia", "prompt": "{} is located in", "target": "the north"}],
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "target"), [("structured", "Norlandia"), ("unstructured", "Norlandia is home to Ada Quill.")]
)
def test_akew(write, form, target):
    counterfact = {
        "case_id": 8, "requested_rewrite": rewrite(), "paraphrase_prompts": ["Ada Quill, citizen of"],
        "neighborhood_prompts": ["Bo Quill is a citizen of"],
    }  # fmt: skip
    [record] = AKEW(write([counterfact]), form=form).read().records
    [request] = record.requests
    assert (request.prompt, request.target, request.ground_truth) == ("Ada Quill is a citizen of", target, "Sudmark")
    triplets = [("portability", "Triplet", "Norlandia is located in", (("the north",),))] * (form == "unstructured")
    assert kinds(record) == [
        ("generalization", "", "Where is Ada Quill from?", ((target,),)),
        *triplets,
        ("generalization", "", "Ada Quill, citizen of", ((target,),)),
        ("locality", "Neighborhood", "Bo Quill is a citizen of", (("Sudmark",),)),
    ]


def test_akew_of_several_rewrites_and_of_updates(write):
    mquake = {
        "case_id": 1, "requested_rewrite": [rewrite(), rewrite(subject="Bo Quill")], "questions": ["Who leads it?"],
        "answer": "Old", "answer_alias": [], "new_answer": "New", "new_answer_alias": ["N."],
    }  # fmt: skip
    [record] = AKEW(write([mquake]), split="mquake").read().records
    assert [request.subject for request in record.requests] == ["Ada Quill", "Bo Quill"]
    assert kinds(record)[-1] == ("portability", "Multi_Hop", "Who leads it?", (("New", "N."),))
    update = {"case_id": 2, "requested_rewrite": rewrite(answer_new="Nord", answer_true="Sud")}
    [record] = AKEW(write([update]), split="wikiupdate").read().records
    assert (record.requests[0].target, record.requests[0].ground_truth) == ("Nord", "Sud")
    with pytest.raises(ConfigurationError, match="form: expected one of"):
        AKEW(write([update]), form="other")
    with pytest.raises(DataFormatError, match=r"record 0, field 'requested_rewrite\.prompt': expected exactly one"):
        AKEW(write([{"case_id": 2, "requested_rewrite": rewrite(prompt="no place")}])).read()


def test_unke(write):
    record = {
        "id": 0, "question": "What does Ada do?", "para_question": "What is Ada's work?", "answer": "Ada paints. " * 9,
        "sub_question": ["Since when?", "Where?"], "sub_answer": ["2001.", ""],
    }  # fmt: skip
    report = UnKE(write([record])).read()
    [read] = report.records
    assert read.requests[0].target == record["answer"].strip()
    assert kinds(read) == [
        ("generalization", "", "What is Ada's work?", ((record["answer"].strip(),),)),
        ("portability", "Sub_Question", "Since when?", (("2001.",),)),
    ]
    assert report.dropped["portability probe without an answer"] == 1
    with pytest.raises(DataFormatError, match="expected 2, one for each sub_question, found 1"):
        UnKE(write([{**record, "sub_answer": ["x"]}])).read()


HALLU = {
    "topic": "art_sculpture", "subject": "Tall Herald", "relation": "made from", "object": "marble",
    "question": "What is Tall Herald made from?", "output_m": "None", "eval_m": "0.0",
    "multiple_choices": "['marble', 'Bronze']", "paraphrased_question": "From what is Tall Herald made?",
    "multiple_choice_with_letters": "A. granite  B. marble", "multiple_choice_labels": "B",
    "yes_question": "Is Tall Herald made from marble?", "no_question": "Is Tall Herald made from Bronze?",
    "locality_question": "Where is Tall Herald?", "reversed_relation_question": "What is made from marble?",
    **{f"question_{hops}hop": f"Question of {hops} hops?" for hops in range(2, 7)},
    **{f"answer_{hops}hop": f"answer {hops}" for hops in range(2, 7)},
}  # fmt: skip


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HALLU)
        writer.writeheader()
        writer.writerows(rows)


def test_hallu_edit_bench(tmp_path):
    write_csv(tmp_path / "art.csv", [HALLU, {**HALLU, "subject": "Low Herald", "question": "Of what is Low Herald?"}])
    write_csv(tmp_path / "more.csv", [{**HALLU, "topic": "more"}])
    report = HalluEditBench(str(tmp_path)).read()
    assert [record.id for record in report.records] == [
        "halluedit-art_sculpture-0",
        "halluedit-art_sculpture-1",
        "halluedit-more-0",
    ]
    first = report.records[0]
    assert (first.requests[0].target, first.requests[0].ground_truth) == ("marble", "None")
    assert [(str(probe.kind), probe.group, probe.answer) for probe in first.probes] == [
        ("generalization", "", "marble"),
        ("generalization", "Yes_Question", "Yes"),
        ("generalization", "No_Question", "No"),
        ("generalization", "Multiple_Choice", "B"),
        ("generalization", "Reversed_Relation", "Tall Herald"),
        *(("portability", f"{hops}_Hops", f"answer {hops}") for hops in range(2, 7)),
    ]
    assert first.probes[3].prompt == "What is Tall Herald made from? A. granite  B. marble"
    assert report.dropped["locality question without a published answer"] == 3
    assert len(HalluEditBench(str(tmp_path), limit=2).read().records) == 2
    assert all(probe.kind is not ProbeKind.LOCALITY for record in report.records for probe in record.probes)


def test_broken_tables_are_errors(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"no \.csv file here"):
        HalluEditBench(str(tmp_path)).read()
    path = tmp_path / "x.csv"
    path.write_text("topic,subject\nart\n")
    with pytest.raises(DataFormatError, match=r"record 0.*another number of columns"):
        HalluEditBench(str(path)).read()
    path.write_bytes(b"topic\n\xff\n")
    with pytest.raises(DataFormatError, match="not a CSV file in UTF-8"):
        HalluEditBench(str(path)).read()
