"""Facts of one's own, in every form that is read."""

import csv
import json
import unicodedata
from pathlib import Path

import pytest

from lightning_edit.data import Facts, read_requests
from lightning_edit.data.facts import FIELDS, facts_schema
from lightning_edit.errors import DataFormatError, SourceNotFoundError
from lightning_edit.records import ProbeKind

FACT = {
    "prompt": "The capital of France is",
    "target": "Rome",
    "subject": "France",
    "ground_truth": "Paris",
    "id": "france",
    "rephrases": ["France's capital is", "What is France's capital? It is"],
    "portability": {"One_Hop": [{"prompt": "The river of France's capital is the", "answer": ["Tiber", "Tevere"]}]},
    "locality": [{"prompt": "The capital of Japan is", "answer": "Tokyo", "group": "same relation"}],
}


def probes(record):
    return [(probe.kind, probe.group, probe.prompt, probe.answers) for probe in record.probes]


EXPECTED = [
    (ProbeKind.GENERALIZATION, "", "France's capital is", (("Rome",),)),
    (ProbeKind.GENERALIZATION, "", "What is France's capital? It is", (("Rome",),)),
    (ProbeKind.PORTABILITY, "One_Hop", "The river of France's capital is the", (("Tiber", "Tevere"),)),
    (ProbeKind.LOCALITY, "same relation", "The capital of Japan is", (("Tokyo",),)),
]


def written(tmp_path, form):
    path = tmp_path / f"facts.{form}"
    if form == "json":
        path.write_text(json.dumps([FACT, {"prompt": "a b", "target": "c"}]))
    elif form == "jsonl":
        path.write_text(json.dumps(FACT) + "\n\n" + json.dumps({"prompt": "a b", "target": "c"}) + "\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(FACT))
            writer.writeheader()
            writer.writerow(
                {name: value if isinstance(value, str) else json.dumps(value) for name, value in FACT.items()}
            )
            writer.writerow({"prompt": "a b", "target": "c"})
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_every_form_gives_the_same_records(tmp_path, form):
    path = written(tmp_path, form)
    first, second = Facts(str(path)).read().records
    [request] = first.requests
    assert (request.prompt, request.target, request.subject, request.ground_truth, request.id) == (
        FACT["prompt"], "Rome", "France", "Paris", "france",
    )  # fmt: skip
    assert probes(first) == EXPECTED
    assert [probe.rival for probe in first.probes] == ["Paris", "Paris", None, None]
    assert (second.id, second.probes) == ("1", ())
    assert [one.id for one in read_requests(path)] == ["france", "1"]
    assert len(Facts(str(path), limit=1).read().records) == 1


def test_flat_fields_of_easyedit(tmp_path):
    path = tmp_path / "facts.json"
    flat = {
        "prompt": "Ann Poe works for", "target_new": "Acme", "subject": "Ann Poe",
        "rephrase_prompt": "Ann Poe's employer is",
        "locality_prompt": "Al Roe works for", "locality_ground_truth": "Initech",
        "ood_rephrase": "Ask Ann who pays her.",
        "portability_prompt": "Ann's boss is", "portability_ground_truth": [["Bo"]],
    }  # fmt: skip
    path.write_text(json.dumps([flat]))
    [record] = Facts(str(path)).read().records
    assert record.requests[0].target == "Acme"
    assert probes(record) == [
        (ProbeKind.GENERALIZATION, "", "Ann Poe's employer is", (("Acme",),)),
        (ProbeKind.LOCALITY, "", "Al Roe works for", (("Initech",),)),
        (ProbeKind.PORTABILITY, "", "Ann's boss is", (("Bo",),)),
        (ProbeKind.GENERALIZATION, "ood", "Ask Ann who pays her.", (("Acme",),)),
    ]


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"promt": "a", "target": "b"}, r"record 0, field 'promt': unknown field; did you mean 'prompt'\?"),
        ({"prompt": "a"}, "record 0, field 'target': missing"),
        ({"prompt": "a", "target": None}, "field 'target': expected a string, found null"),
        ({"prompt": "a", "target": "b", "rephrases": 3}, "field 'rephrases': expected a list"),
        ({"prompt": "a", "target": "b", "locality": [{"prompt": "c"}]}, r"field 'locality\[0\].answer': missing"),
        ({"prompt": "a", "target": "b", "locality": [{"prompt": "c", "answer": "d", "anser": 1}]}, "anser"),
        ({"prompt": "a", "target": "b", "subject": "z"}, "record 0: the subject 'z' is not in the prompt"),
        ({"prompt": "a", "target": "b", "target_new": "c"}, "target and target_new are names of the same field"),
        ([], "expected an object"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, fact, message):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(fact))
    with pytest.raises(DataFormatError, match=message):
        Facts(str(path)).read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,target\na,b,c\n", "record 0: expected 2 cells"),
        (b"prompt,target,locality\na,b,[x\n", "field 'locality': starts like JSON"),
        (b"prompt,target\n\xff,b\n", "not valid UTF-8"),
        (b'prompt,target\n"a,b\n', "not a CSV file"),
        (b"prompt,target\n", "no fact"),
        (b"prompt;target\na;b\n", "unknown field"),
        (b"prompt,target,target\na,b,c\n", "'target' occurs twice"),
    ],
    ids=str,
)
def test_broken_tables(tmp_path, content, message):
    path = tmp_path / "facts.csv"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=message):
        Facts(str(path)).read()


def test_a_repeated_id_is_numbered_on_record_and_request(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "a", "target": "b", "id": "k"}\n{"prompt": "c", "target": "d", "id": "k"}')
    records = Facts(str(path)).read().records
    assert [(record.id, record.requests[0].id) for record in records] == [("k", "k"), ("k#2", "k#2")]


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such file"):
        Facts(str(tmp_path / "none.csv")).read()


def test_the_schema_is_the_documented_one_and_knows_every_field():
    schema = facts_schema()
    assert json.loads((Path(__file__).parents[2] / "docs" / "facts.schema.json").read_text()) == schema
    assert set(schema["properties"]) == set(FIELDS)
    assert set(FACT) <= set(schema["properties"])


def test_a_subject_in_another_normal_form_is_an_error_when_the_file_is_read(tmp_path):
    subject = "Zoë Müller"
    fact = {"prompt": f"{subject} lives in", "target": "Rome", "subject": unicodedata.normalize("NFD", subject)}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([fact]))
    with pytest.raises(DataFormatError, match=r"record 0: the subject .* is not in the prompt"):
        Facts(str(path)).read()


def test_a_flat_counterfact_record_is_read(tmp_path):
    """The fields of EasyEdit's counterfact-train.json, with a number as id and a list of true answers."""
    path = tmp_path / "flat.json"
    record = {
        "case_id": 2,
        "prompt": "Jo Doe plays",
        "target_new": "chess",
        "subject": "Jo Doe",
        "ground_truth": ["go", "Go"],
        "rephrase_prompt": "Jo Doe's game is",
        "locality_prompt": "Al Roe plays",
        "locality_ground_truth": "go",
    }
    path.write_text(json.dumps([record]))
    [read] = Facts(str(path)).read().records
    assert (read.id, read.requests[0].ground_truth) == ("2", "go")
    assert [str(probe.kind) for probe in read.probes] == ["generalization", "locality"]
    for broken, message in (({"ground_truth": []}, "an empty list"), ({"case_id": 1.5}, "expected a string")):
        path.write_text(json.dumps([{**record, **broken}]))
        with pytest.raises(DataFormatError, match=message):
            Facts(str(path)).read()
