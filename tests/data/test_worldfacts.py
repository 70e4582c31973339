import re

import pytest

from lightning_edit.data import WorldFacts
from lightning_edit.data.worldfacts_text import GENERAL_FACTS_HELD_OUT, PHRASINGS
from lightning_edit.errors import ConfigurationError
from lightning_edit.records import ProbeKind


@pytest.fixture(scope="module")
def splits():
    return WorldFacts("train").read().records, WorldFacts("validation").read().records


def test_thousands_of_records(splits):
    assert len(splits[0]) > 2500
    assert len(splits[1]) > 500


def texts(records):
    for record in records:
        for request in record.requests:
            yield f"{request.prompt} {request.target} {request.ground_truth}"
        for probe in record.probes:
            yield f"{probe.prompt} {' '.join(probe.aliases)} {probe.rival}"


def test_no_country_or_city_of_validation_is_a_subject_or_object_of_training(splits):
    train, validation = splits
    subjects = {record.requests[0].subject for record in validation}
    named = set()
    for record in train:
        request = record.requests[0]
        if request.id.split("-")[1] in ("capital", "neighbour", "city_country"):
            named |= {request.target, request.ground_truth}
        named.add(request.subject)
    assert not subjects & named


def test_validation_words_its_rephrases_and_locality_prompts_as_training_never_does(splits):
    train, validation = splits
    held_out = [pattern(wording) for phrasings in PHRASINGS.values() for wording in phrasings.held_out]
    held_out += [re.compile(re.escape(prompt)) for prompt, _ in GENERAL_FACTS_HELD_OUT]
    for record in validation[:200]:
        for probe in (*record.probes_of(ProbeKind.GENERALIZATION), *record.probes_of(ProbeKind.LOCALITY)):
            assert any(wording.fullmatch(probe.prompt) for wording in held_out), probe.prompt
    prompts = [probe.prompt for record in train[:400] for probe in record.all_probes]
    assert not [prompt for prompt in prompts for wording in held_out if wording.fullmatch(prompt)]


def pattern(wording):
    return re.compile(re.escape(wording).replace(r"\{\}", "(.+)"))


def test_targets_are_false_and_of_the_right_type(splits):
    for record in splits[0]:
        [request] = record.requests
        relation = request.id.split("-")[1]
        assert request.target != request.ground_truth
        if relation == "calling_code":
            assert request.target.startswith("+")
        if relation == "internet_domain":
            assert request.target.startswith(".")


def test_a_portability_answer_follows_from_the_new_object():
    records = WorldFacts("train").read().records
    record = next(
        record
        for record in records
        if record.requests[0].target == "Japan" and record.id.startswith("worldfacts-city_country")
    )
    hops = {probe.prompt.split(" where")[0]: probe.answer for probe in record.probes_of(ProbeKind.PORTABILITY)}
    assert hops["The capital of the country"] == "Tokyo"
    assert hops["The currency of the country"] == "Yen"


def test_the_same_seed_gives_the_same_records():
    assert WorldFacts("train", limit=50).read().records == WorldFacts("train", limit=50).read().records
    assert WorldFacts("train", limit=50).read().records == WorldFacts("train").read().records[:50]
    assert WorldFacts("train", limit=50, seed=1).read().records != WorldFacts("train", limit=50).read().records


def test_locality_groups(splits):
    groups = {probe.group for record in splits[1] for probe in record.probes_of(ProbeKind.LOCALITY)}
    assert groups == {"Same_Relation", "Same_Subject", "Unrelated"}
    for record in splits[1]:
        assert not any(
            probe.group == "Same_Relation" and record.requests[0].subject in probe.prompt.split()
            for probe in record.probes
        )


@pytest.mark.parametrize("settings", [{"split": "test"}, {"validation_fraction": 1.0}, {"rephrases": 10}, {"limit": 0}])
def test_settings_out_of_range_are_errors(settings):
    with pytest.raises(ConfigurationError):
        WorldFacts(**settings)
