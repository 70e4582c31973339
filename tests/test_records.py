import pytest

from lightning_edit.errors import RequestError
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind, find_subject, group_names


@pytest.mark.parametrize(
    ("prompt", "subject", "span"),
    [
        ("Art paints. The Artist is Art, they say", "Art", (26, 29)),
        ("The capital of France is", "France", (15, 21)),
        ("Belgium's capital is", "Belgium", (0, 7)),
        ("東京都の首都は", "東京", (0, 2)),
        ("C++ was made by", "C++", (0, 3)),
        ("France's capital is", "France", (0, 6)),
        ("프랑스의 수도는", "프랑스", (0, 3)),
        ("Rome.The city of Rome", "Rome", (17, 21)),
    ],
)
def test_subjects_are_found_as_whole_words_the_last_one_first(prompt, subject, span):
    assert find_subject(prompt, subject) == span


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [("José lives in", "Jos"), ("Римская империя", "Рим"), ("Zoe\u0308 is from", "Zoe"), ("In 3.5 years", "3")],
)
def test_a_subject_that_a_letter_or_a_mark_continues_is_not_found(prompt, subject):
    with pytest.raises(RequestError, match="only inside another word"):
        find_subject(prompt, subject)


def test_a_subject_inside_a_word_or_nowhere_is_an_error():
    with pytest.raises(RequestError, match="only inside another word"):
        EditRequest("The Artist paints", "x", "Art")
    with pytest.raises(RequestError, match="is not in the prompt"):
        EditRequest("The painter paints", "x", "Art")
    with pytest.raises(RequestError, match="does not start at character 3"):
        EditRequest("The painter", "x", "painter", subject_start=3)


@pytest.mark.parametrize(("prompt", "target"), [("", "x"), ("  ", "x"), ("x", ""), ("x", " \n")])
def test_empty_prompts_and_targets_are_errors(prompt, target):
    with pytest.raises(RequestError, match="is empty"):
        EditRequest(prompt, target)


def test_an_empty_subject_is_an_error():
    with pytest.raises(RequestError, match="subject of the edit request 'a' is empty"):
        EditRequest("x", "y", " ", id="a")


def test_white_space_around_the_boundary_is_stripped():
    request = EditRequest("The capital of France is ", " Rome ", " France")
    assert (request.prompt, request.target, request.subject) == ("The capital of France is", "Rome", "France")
    assert request.subject_span == (15, 21)


def test_probes():
    probe = Probe("x ", ((" a", ""), ("",), ("b",)), ProbeKind.PORTABILITY, "R")
    assert (probe.prompt, probe.answers, probe.answer, probe.aliases) == ("x", (("a",), ("b",)), "a", ("a", "b"))
    with pytest.raises(RequestError, match="no answer"):
        Probe("x", ((" ",),), ProbeKind.LOCALITY)
    with pytest.raises(RequestError, match="empty prompt"):
        Probe(" ", (("a",),), ProbeKind.LOCALITY)
    assert Probe("x", (), ProbeKind.FLUENCY).answer == ""


def test_records():
    with pytest.raises(RequestError, match="no edit request"):
        EditRecord("r", ())
    request = EditRequest("A is", "b", ground_truth="c")
    record = EditRecord("r", (request,), (Probe("x", (("y",),), ProbeKind.LOCALITY, "G"),))
    first = record.all_probes[0]
    assert (first.kind, first.answer, first.rival) == (ProbeKind.EDIT_SUCCESS, "b", "c")
    assert group_names([record]) == [(ProbeKind.EDIT_SUCCESS, ""), (ProbeKind.LOCALITY, "G")]


@pytest.mark.parametrize("name", ["prompt", "target", "ground_truth"])
def test_half_of_a_surrogate_pair_is_an_error(name):
    fields = {"prompt": "A is", "target": "b", name: "A is \udcff"}
    with pytest.raises(RequestError, match=f"the {name} .* half of a surrogate pair"):
        EditRequest(**fields)
