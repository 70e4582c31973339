"""The special cases of the published files, on hand-written records in their formats."""

import json

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
    read_requests,
)
from lightning_edit.errors import ConfigurationError, DataFormatError, SourceNotFoundError
from lightning_edit.metrics import TokenAccuracy
from lightning_edit.records import Answer, EditOutcome, ProbeKind, find_subject


@pytest.fixture
def write(tmp_path):
    def write(content, name="data.json"):
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def zsre(**changes):
    record = {
        "subject": "Mount Doe",
        "src": "Which range holds Mount Doe?",
        "pred": "The Alps",
        "rephrase": "Mount Doe is in which range?",
        "alt": "Andes",
        "answers": ["Rockies", "Rocky Mountains"],
        "loc": "nq question: who wrote it",
        "loc_ans": "A. Writer",
        "cond": "The Alps >> Andes || Which range holds Mount Doe?",
    }
    return {**record, **changes}


def knowedit(**changes):
    record = {
        "subject": "Ann Example",
        "prompt": "The employer of Ann Example is",
        "target_new": "Acme",
        "ground_truth": "Initech",
        "portability": {
            "Reasoning": [{"prompt": "The city of Ann Example's employer is", "ground_truth": [["Springfield"]]}]
        },
        "locality": {"Relation_Specificity": [{"prompt": "Ann Example was born in", "ground_truth": [["Oslo"]]}]},
    }
    return {**record, **changes}


def kinds(record):
    return [(probe.kind, probe.group) for probe in record.probes]


class TestZsRE:
    def test_full_variant(self, write):
        report = ZsRE(write([zsre()])).read()
        [record] = report.records
        [request] = record.requests
        assert (request.prompt, request.target, request.subject) == (
            "Which range holds Mount Doe?",
            "Andes",
            "Mount Doe",
        )
        assert request.ground_truth == "Rockies"
        rephrase, locality = record.probes
        assert (rephrase.kind, rephrase.answer, rephrase.rival) == (ProbeKind.GENERALIZATION, "Andes", "Rockies")
        assert (locality.kind, locality.answers) == (ProbeKind.LOCALITY, (("A. Writer",),))
        assert report.noted["several true answers"] == 1

    def test_variant_with_fewer_fields(self, write):
        record = {key: zsre()[key] for key in ("subject", "src", "rephrase", "alt", "loc", "loc_ans")}
        [read] = ZsRE(write([{"case_id": 7, **record}])).read().records
        assert read.id == "zsre-7"
        assert read.requests[0].ground_truth is None

    def test_an_empty_target_is_dropped_and_counted(self, write):
        report = ZsRE(write([zsre(alt=""), zsre()])).read()
        assert len(report.records) == 1
        assert report.dropped["record with an empty target"] == 1

    def test_white_space_is_stripped_and_counted(self, write):
        report = ZsRE(write([zsre(alt=" Andes ")])).read()
        assert report.records[0].requests[0].target == "Andes"
        assert report.changed["white space around a text stripped"] == 1

    def test_a_target_that_is_already_true_is_kept_and_counted(self, write):
        report = ZsRE(write([zsre(alt="Rocky Mountains"), zsre(alt="Rockies")])).read()
        assert len(report.records) == 2
        assert report.noted["target is already the true answer"] == 2
        assert report.records[1].all_probes[0].rival is None

    def test_limit(self, write):
        assert len(ZsRE(write([zsre()] * 5), limit=2).read().records) == 2
        with pytest.raises(ConfigurationError, match="limit"):
            ZsRE("x", limit=0)
        with pytest.raises(ConfigurationError, match="split"):
            ZsRE("x", split="nothing")


class TestCounterFact:
    original = {
        "case_id": 3,
        "pararel_idx": 9,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1"},
            "target_true": {"str": "French", "id": "Q2"},
            "subject": "Jo Doe",
        },
        "paraphrase_prompts": ["Some lead-in.\nJo Doe spoke the language"],
        "neighborhood_prompts": ["The mother tongue of Al Roe is", "Jo Doe's friend speaks"],
        "attribute_prompts": ["The mother tongue of Bo Poe is"],
        "generation_prompts": ["Jo Doe lives in", "Jo Doe lives in"],
    }
    compact = {
        "case_id": 4,
        "prompt": "Jo Doe plays",
        "target_new": "chess",
        "subject": "Jo Doe",
        "ground_truth": "go",
        "rephrase_prompt": "Jo Doe's game is",
        "locality_prompt": "Al Roe plays",
        "locality_ground_truth": "go",
    }

    def test_original(self, write):
        report = CounterFact(write([self.original])).read()
        [record] = report.records
        assert record.requests[0].prompt == "The mother tongue of Jo Doe is"
        assert record.requests[0].subject_span == (21, 27)
        assert kinds(record) == [
            (ProbeKind.GENERALIZATION, ""),
            (ProbeKind.LOCALITY, "Neighborhood"),
            (ProbeKind.LOCALITY, "Neighborhood"),
            (ProbeKind.LOCALITY, "Attribute"),
            (ProbeKind.FLUENCY, ""),
        ]
        neighbour, attribute = record.probes[1], record.probes[3]
        assert (neighbour.answer, neighbour.rival) == ("French", "English")
        assert (attribute.answer, attribute.rival) == ("English", "French")
        assert report.noted["neighborhood prompt contains the subject"] == 1
        assert report.changed["repeated generation prompt removed"] == 1

    def test_a_repeated_subject_takes_its_position_in_the_template(self, write):
        rewrite = {**self.original["requested_rewrite"], "prompt": "{} and not the other Jo Doe speaks"}
        [record] = CounterFact(write([{**self.original, "requested_rewrite": rewrite}])).read().records
        assert record.requests[0].subject_span == (0, 6)

    def test_compact(self, write):
        [record] = CounterFact(write([self.compact]), split="train").read().records
        assert kinds(record) == [(ProbeKind.GENERALIZATION, ""), (ProbeKind.LOCALITY, "Neighborhood")]
        assert record.probes[1].rival == "chess"

    def test_a_template_without_a_placeholder_is_an_error(self, write):
        rewrite = {**self.original["requested_rewrite"], "prompt": "no place"}
        with pytest.raises(DataFormatError, match=r"record 0, field 'requested_rewrite.prompt': expected exactly one"):
            CounterFact(write([{**self.original, "requested_rewrite": rewrite}])).read()


class TestKnowEdit:
    def test_zsre_mixes_lists_and_strings(self, write):
        record = knowedit(
            ground_truth=["Initech", "Initrode"],
            rephrase_prompt="Who employs her?",
            portability={"Subject_Aliasing": [{"prompt": "The employer of A. Example is", "ground_truth": " Acme"}]},
            locality={"Relation_Specificity": [{"prompt": "Bob works at", "ground_truth": ["Hooli"]}]},
        )
        report = KnowEditZsRE(write([record])).read()
        [read] = report.records
        assert [probe.answers for probe in read.probes] == [(("Acme",),), (("Acme",),), (("Hooli",),)]
        assert report.noted["several true answers"] == 1

    def test_objects_and_aliases(self, write):
        answers = [[], ["Springfield", "Spr."], ["Springfield"], ["Shelbyville", ""]]
        record = knowedit(portability={"Reasoning": [{"prompt": "p", "ground_truth": answers}]})
        report = WikiCounterfact(write([record])).read()
        [probe] = report.records[0].probes_of(ProbeKind.PORTABILITY)
        assert probe.answers == (("Springfield", "Spr."), ("Shelbyville",))
        assert probe.aliases == ("Springfield", "Spr.", "Shelbyville")
        assert report.changed["answer repeated inside a probe removed"] == 1
        assert report.changed["empty answer removed"] == 1

    def test_probes_without_an_answer_are_dropped_and_counted(self, write):
        record = knowedit(
            portability={"Reasoning": [{"prompt": "p", "ground_truth": [[]]}], "Logical_Generalization": []},
            locality={"Forgetfulness": [{"prompt": "q", "ground_truth": ""}]},
        )
        report = WikiCounterfact(write([record])).read()
        assert report.records[0].probes == ()
        assert report.dropped == {"portability probe without an answer": 1, "locality probe without an answer": 1}

    def test_empty_groups_and_an_empty_ground_truth(self, write):
        report = WikiCounterfact(write([knowedit(portability={}, locality={}, ground_truth="")]), split="train").read()
        assert report.records[0].probes == ()
        assert report.records[0].requests[0].ground_truth is None

    def test_a_locality_probe_equal_to_the_edit_is_dropped_and_a_portability_probe_kept(self, write):
        repeated = {"prompt": "The employer of Ann Example is", "ground_truth": [["Initech"]]}
        report = WikiCounterfact(write([knowedit(locality={"F": [repeated]}, portability={"R": [repeated]})])).read()
        assert [probe.kind for probe in report.records[0].probes] == [ProbeKind.PORTABILITY]
        assert report.dropped["locality probe that repeats the edit's own prompt"] == 1

    def test_recent_has_no_ground_truth(self, write):
        record = knowedit()
        del record["ground_truth"]
        [read] = WikiRecent(write([record])).read().records
        assert read.requests[0].ground_truth is None

    def test_duplicate_prompts_are_kept_and_conflicts_counted(self, write):
        report = WikiCounterfact(write([knowedit(), knowedit(), knowedit(target_new="Other")])).read()
        assert len(report.records) == 3
        assert report.noted["prompts shared by several requests"] == 1
        assert report.noted["prompts with conflicting targets"] == 1

    def test_wikibio_takes_the_subject_as_spelled_in_the_prompt(self, write):
        record = {
            "text": "This is a biography of Ann Example. She ",
            "labels": "was a chemist.",
            "concept": "ann example",
            "locality": {"Relation_Specificity": [{"prompt": "She lived", "ground_truth": ["in Oslo"]}]},
        }
        report = WikiBio(write([record, {**record, "concept": "somebody else"}])).read()
        assert [read.requests[0].subject for read in report.records] == ["Ann Example", None]
        assert report.records[0].requests[0].prompt.endswith("She")
        assert report.changed["subject not in the prompt left out"] == 1

    def test_convsent_builds_the_prompt(self, write):
        opinions = {"pos": [" It is fine. "], "neg": [" It is bad."]}
        path = write([{"ent": " Alpha ", **opinions}, {"ent": "Beta", **opinions}])
        first, second = ConvSent(path).read().records
        assert first.requests[0].prompt == "What do you think of Alpha?"
        assert (first.requests[0].target, first.requests[0].ground_truth) == ("It is bad.", "It is fine.")
        sentiment, other = first.probes
        assert (sentiment.kind, sentiment.group, sentiment.prompt) == (
            "sentiment",
            "negative",
            first.requests[0].prompt,
        )
        assert (sentiment.answers, sentiment.opposites) == ((("It is bad.",),), ("It is fine.",))
        assert other.prompt == "What do you think of Beta?"
        assert second.probes[1].prompt == "What do you think of Alpha?"
        positive = ConvSent(path, sentiment="positive").read().records[0]
        assert positive.requests[0].target == "It is fine."
        assert (positive.probes[0].group, positive.probes[0].opposites) == ("positive", ("It is bad.",))

    def test_convsent_without_opposite_opinions_has_no_sentiment_probe(self, write):
        path = write([{"ent": "Alpha", "pos": [" "], "neg": ["It is bad."]}])
        assert not ConvSent(path).read().records[0].probes

    def test_sanitation_distributes_the_questions_to_keep(self, write):
        forget = [{"question": f"f{i}?", "ground_truth": "x", "target_new": "I don't know."} for i in range(2)]
        keep = [{"question": f"k{i}?", "ground_truth": "y"} for i in range(5)]
        records = Sanitation(write({"success": forget, "locality": keep})).read().records
        assert [[probe.prompt for probe in record.probes] for record in records] == [
            ["k0?", "k2?", "k4?"],
            ["k1?", "k3?"],
        ]
        train = {"K_F": [{**forget[0], "subject": "f0"}], "K_R": [{**keep[0], "target_new": "y"}]}
        [record] = Sanitation(write(train, "train.json"), split="train").read().records
        assert record.requests[0].subject == "f0"


def test_mquake_has_several_edits_and_multi_hop_questions(write):
    def hop(name, answer):
        return {"question": f"Who is the head of {name}?", "cloze": "", "answer": answer, "answer_alias": ["The Boss"]}

    rewrite = {**TestCounterFact.original["requested_rewrite"], "question": "Who is the head of A?"}
    record = {
        "case_id": 1,
        "requested_rewrite": [rewrite, {**rewrite, "subject": "Al Roe", "question": "Which?"}],
        "questions": ["q1?", "q2?", "q3?"],
        "answer": "Old",
        "answer_alias": [],
        "new_answer": "New",
        "new_answer_alias": [],
        "single_hops": [],
        "new_single_hops": [hop("A", "X"), hop("B", "Y")],
        "orig": {},
    }
    [read] = MQuAKE(write([record]), split="hard").read().records
    assert [request.subject for request in read.requests] == ["Jo Doe", "Al Roe"]
    groups = [probe.group for probe in read.probes if probe.kind is ProbeKind.PORTABILITY]
    assert groups == ["Multi_Hop"] * 3 + ["Single_Hop"]
    assert read.probes[2].answers == (("New",),)
    assert read.probes[2].rival == "Old"
    assert read.probes[-1].answers == (("Y", "The Boss"),)


class TestBrokenFiles:
    def test_not_json(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text('[{"src": "a"')
        with pytest.raises(DataFormatError, match=r"x\.json: not valid JSON at line 1, column 13.*complete"):
            ZsRE(path).read()

    def test_not_utf8(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_bytes(b'["\xff"]')
        with pytest.raises(DataFormatError, match="not valid UTF-8 at byte 2"):
            ZsRE(path).read()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, "expected a list of records at the top, found an object"),
            ([3], "record 0: expected an object, found a number"),
            ([zsre(), {"src": "x"}], "record 1, field 'alt': missing"),
            ([zsre(src=None)], "record 0, field 'src': expected a string, found null"),
            ([zsre(answers=["x", 4])], r"record 0, field 'answers\[1\]': expected a string, found a number"),
            ([], "no usable record"),
        ],
    )
    def test_wrong_content(self, write, content, message):
        with pytest.raises(DataFormatError, match=message):
            ZsRE(write(content)).read()

    def test_nested_fields_are_named(self, write):
        record = knowedit(locality={"Forgetfulness": [{"prompt": "p", "ground_truth": 3}]})
        with pytest.raises(DataFormatError, match=r"field 'locality\.Forgetfulness\[0\]\.ground_truth'"):
            WikiCounterfact(write([record])).read()

    def test_sanitation_top_level(self, write):
        with pytest.raises(DataFormatError, match="K_F"):
            Sanitation(write({"other": []})).read()


class TestSources:
    def test_a_folder_is_searched_for_the_published_name(self, write, tmp_path):
        write([zsre()], "zsre_mend_train-1k.json")
        assert len(ZsRE(str(tmp_path), split="train").read().records) == 1
        with pytest.raises(SourceNotFoundError, match="has none of"):
            ZsRE(str(tmp_path), split="test").read()

    def test_a_missing_path_says_what_to_pass(self):
        with pytest.raises(SourceNotFoundError, match="pass a local path or a Hub id"):
            ZsRE("./nowhere/x.json").read()

    def test_an_unreachable_hub_says_what_to_pass(self):
        with pytest.raises(SourceNotFoundError, match=r"nor reachable on the Hub.*pass its path as source"):
            ZsRE("owner/name").read()

    def test_the_hub_is_asked_for_the_published_name(self, write, monkeypatch):
        import huggingface_hub

        path = write([zsre()], "zsre_mend_eval.json")
        monkeypatch.setattr(
            huggingface_hub.HfApi, "list_repo_files", lambda self, id, repo_type: ["data/zsre_mend_eval.json"]
        )
        asked = []
        monkeypatch.setattr(
            huggingface_hub, "hf_hub_download", lambda id, file, repo_type: asked.append((id, file, repo_type)) or path
        )
        assert len(ZsRE("owner/name").read().records) == 1
        assert asked == [("owner/name", "data/zsre_mend_eval.json", "dataset")]


def test_probes_of_extended_files_are_read_and_other_fields_are_counted(write):
    extended = zsre(
        portability={"Reasoning": [{"prompt": "Where is it?", "ground_truth": "Peru"}]},
        ood_rephrase="Tell me its range.",
        alternative_subject="Mount Roe",
    )
    report = ZsRE(write([extended])).read()
    [record] = report.records
    assert kinds(record)[2:] == [(ProbeKind.PORTABILITY, "Reasoning"), (ProbeKind.GENERALIZATION, "ood")]
    assert report.noted["field 'alternative_subject' not read"] == 1
    assert not any("portability" in note or "ood" in note for note in report.noted)
    flat = {"locality_prompt": "Al Roe works for", "locality_ground_truth": "Initech"}
    [record] = WikiCounterfact(write([{**knowedit(), **flat}])).read().records
    assert kinds(record)[-1] == (ProbeKind.LOCALITY, "")
    distracting = [{"prompt": "Ann Example is here. The employer of Bo is", "target": "Initech"}]
    original = {**TestCounterFact.original, "distracting_neighborhood_prompts": distracting}
    [record] = CounterFact(write([original])).read().records
    assert kinds(record)[-1] == (ProbeKind.LOCALITY, "Distracting_Neighborhood")
    report = CounterFact(write([{**TestCounterFact.original, "distracting_neighborhood_prompts": None}])).read()
    assert report.noted["field 'distracting_neighborhood_prompts' not read"] == 1


def test_requests_from_json_lines(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text(
        '{"prompt": "A is", "target": "b", "subject": "A"}\n\n{"prompt": "C is", "target": "d", "id": "x"}\n'
    )
    requests = read_requests(path)
    assert [(request.prompt, request.subject, request.id) for request in requests] == [
        ("A is", "A", "0"),
        ("C is", None, "x"),
    ]
    path.write_text('{"prompt": "A is", "target": "b"}\n{"prompt": "A is"}\n')
    with pytest.raises(DataFormatError, match="record 1, field 'target': missing"):
        read_requests(path)
    path.write_text('{"prompt": "A is", "target": "b", "subject": "Z"}\n')
    with pytest.raises(DataFormatError, match="record 0: the subject 'Z' is not in the prompt"):
        read_requests(path)
    path.write_text("{")
    with pytest.raises(DataFormatError, match="record 0"):
        read_requests(path)
    path.write_bytes(b'{"prompt": "A is", "target": "b"}\n{"prompt": "Caf\xe9 is", "target": "b"}\n')
    with pytest.raises(DataFormatError, match="record 1: not valid UTF-8"):
        read_requests(path)
    # U+2028 separates lines in Unicode, but not in JSON Lines.
    path.write_text('{"prompt": "A\u2028is", "target": "b"}\r\n', encoding="utf-8")
    assert [request.prompt for request in read_requests(path)] == ["A\u2028is"]


def test_fields_that_nothing_reads_are_counted_wherever_they_are(write):
    original = json.loads(json.dumps(TestCounterFact.original))
    original["requested_rewrite"]["extra_probe"] = "Who?"
    report = CounterFact(write([original, {**original, "case_id": 7}])).read()
    assert report.noted["field 'requested_rewrite.extra_probe' not read"] == 2
    extended = knowedit()
    for items in extended["portability"].values():
        for item in items:
            item["source_url"] = "x"
    report = WikiCounterfact(write([extended])).read()
    assert any("portability" in note and "source_url" in note for note in report.noted)


def test_a_locality_probe_that_asks_the_edit_is_dropped(write):
    extended = knowedit()
    extended |= {"locality_prompt": extended["prompt"], "locality_ground_truth": "Initech"}
    report = WikiCounterfact(write([extended])).read()
    assert report.dropped["locality probe that asks the edit itself"] == 1


@pytest.mark.parametrize("name", ["nothing/zsre_eval.json", "data/x.jsonl", "x/y/z"])
def test_a_misspelled_path_is_not_looked_up_on_the_hub(name, monkeypatch):
    import huggingface_hub

    def look_up(*arguments, **named):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", look_up)
    with pytest.raises(SourceNotFoundError, match="no such file or folder"):
        ZsRE(name).read()


def test_subject_is_found_after_letters_whose_lower_case_is_longer(write):
    report = ZsRE(write([zsre(src="İİİ asks which range MOUNT DOE, in the west, is in.")])).read()
    [request] = report.records[0].requests
    assert request.subject == "MOUNT DOE"
    assert request.subject_span == (21, 30)
    assert report.changed["subject takes its form in the prompt"] == 1
    assert find_subject("İİİ asks: Mount Doe", "Mount Doe") == (10, 19)


def test_a_repeated_case_gives_two_records_that_measures_count_apart(write):
    once = {**TestCounterFact.compact, "rephrase_prompt": ""}
    report = CounterFact(write([once, TestCounterFact.compact, {**once, "case_id": 5}])).read()
    assert [record.id for record in report.records] == ["counterfact-4", "counterfact-4#2", "counterfact-5"]
    assert [record.requests[0].id for record in report.records] == [record.id for record in report.records]
    assert report.changed["record id that another record has, numbered"] == 1
    measure = TokenAccuracy(average="record")
    for record, right in zip(report.records, (True, False, False), strict=True):
        answer = Answer(predicted_ids=(1 if right else 0,), log_probs=(-1.0,))
        measure.update([EditOutcome(record.id, probe, (1,), answer, answer) for probe in record.all_probes])
    assert float(measure.compute()) == pytest.approx(1 / 3)


def test_generations_are_compared_with_texts_about_the_new_object(write, tmp_path):
    """ROME's attribute_snippets.json."""
    path = tmp_path / "attribute_snippets.json"
    samples = [{"name": "Ann", "text": "Ann speaks English."}, {"name": "Bo", "text": "Bo speaks English, too."}]
    entries = [
        {"relation_id": "P103", "target_id": "Q1", "samples": samples[:1]},
        {"relation_id": "P103", "target_id": "Q2", "samples": samples[1:]},
        {"relation_id": "P103", "target_id": "Q1", "samples": samples[1:]},
    ]
    path.write_text(json.dumps(entries))
    other = {**TestCounterFact.original, "case_id": 4}
    other["requested_rewrite"] = {**other["requested_rewrite"], "relation_id": "P1"}
    report = CounterFact(write([TestCounterFact.original, other]), snippets=str(path)).read()
    [fluency] = report.records[0].probes_of(ProbeKind.FLUENCY)
    assert fluency.references == ("Ann speaks English.", "Bo speaks English, too.")
    assert report.noted["relation and new object without snippets"] == 1
    assert report.records[1].probes_of(ProbeKind.FLUENCY)[0].references == ()
    for record in (TestCounterFact.compact, other):
        with pytest.raises(ConfigurationError, match=r"snippets: .* has no texts for the records"):
            CounterFact(write([record]), snippets=str(path)).read()
    path.write_text(json.dumps([{"relation_id": "P103", "target_id": "Q1"}]))
    with pytest.raises(DataFormatError, match=r"record 0, field 'samples': missing"):
        CounterFact(write([TestCounterFact.original]), snippets=str(path)).read()


def test_the_fields_of_the_extended_zsre_files_are_read(write):
    """zsre_mend_eval_portability_gpt4.json and its siblings (Yao et al. 2023)."""
    hop = {"Recalled Relation": "(Mount Doe, in, Peru)", "New Question": "Where is it?", "New Answer": "Lima"}
    fields = {"alternative_subject": "Mt. Doe", "alter_subject_question": "What is the range of Mt. Doe?"}
    entry = zsre(portability=hop, **fields, **{"inverse question": "Which mountain is there?"})
    report = ZsRE(write([entry])).read()
    [record] = report.records
    request = record.requests[0]
    assert [(probe.group, probe.prompt, probe.answer) for probe in record.probes_of(ProbeKind.PORTABILITY)] == [
        ("Reasoning", "Where is it?", "Lima"),
        ("Subject_Aliasing", "What is the range of Mt. Doe?", request.target),
        ("Logical_Generalization", "Which mountain is there?", request.subject),
    ]
    assert not any("alter" in note or "inverse" in note for note in report.noted)
    odd = zsre(alter_subject_question=None, **{"inverse question": ["no text"]})
    assert {note for note in ZsRE(write([odd])).read().noted if "not read" in note} >= {
        "field 'alter_subject_question' not read",
        "field 'inverse question' not read",
    }


def test_the_fields_of_the_extended_counterfact_files_are_read(write):
    """counterfact_portability_gpt4.json and the files of other attributes and distracting neighbours."""
    entry = {
        **TestCounterFact.original,
        "portability": {"New Question": "Which alphabet does Jo Doe use?", "New Answer": "Latin"},
        "alternative_subject": "J. Doe",
        "unrelated_relation": {"question": "Jo Doe was born in", "object": "Paris"},
        "distracting_neighborhood_prompts": ["Jo Doe speaks English. The mother tongue of Al Roe is"],
    }
    report = CounterFact(write([entry])).read()
    [record] = report.records
    read = [(str(probe.kind), probe.group, probe.prompt, probe.answer, probe.rival) for probe in record.probes]
    assert read[-4:] == [
        ("portability", "Reasoning", "Which alphabet does Jo Doe use?", "Latin", None),
        ("portability", "Subject_Aliasing", "The mother tongue of J. Doe is", "English", None),
        ("locality", "Other_Attribution", "Jo Doe was born in", "Paris", None),
        (
            "locality",
            "Distracting_Neighborhood",
            "Jo Doe speaks English. The mother tongue of Al Roe is",
            "French",
            "English",
        ),
    ]
    compact = {**TestCounterFact.compact, "alternative_subject": "J. Doe"}
    assert CounterFact(write([compact])).read().noted["field 'alternative_subject' not read"] == 1


@pytest.mark.parametrize(
    ("reader", "content"), [(ZsRE, zsre()), (CounterFact, TestCounterFact.original), (WikiCounterfact, knowedit())]
)
def test_a_byte_order_mark_before_a_benchmark_changes_nothing(write, tmp_path, reader, content):
    plain = reader(write([content])).read()
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps([content]).encode())
    assert reader(str(marked)).read().records == plain.records
