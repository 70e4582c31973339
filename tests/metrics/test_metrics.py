"""Every metric against a plain-Python reference, in one process and in two with uneven shares, and pickled."""

import math
import pickle
import random
import string
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp

from lightning_edit import metrics as m
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.divergence import kl_divergence
from lightning_edit.metrics.collection import metric_names
from lightning_edit.records import Answer, EditOutcome, EditRequest, Probe, ProbeKind, Route
from tests.two_processes import start_method

TEXTS = ["Rome.", "Rome, the city", "in Rome", "Romeo", "Paris", "", "The Hague!\nmore", "rome is the capital of Italy"]


def outcomes(count=60, seed=0):
    rng = random.Random(seed)
    sample = []
    for index in range(count):
        kind = rng.choice(list(ProbeKind))
        length = rng.randint(1, 4)

        def answer(length=length):
            return Answer(
                tuple(rng.randint(0, 2) for _ in range(length)),
                tuple(-rng.random() for _ in range(length)),
                tuple(-rng.random() for _ in range(rng.randint(0, 3))),
                rng.choice([None, *TEXTS]),
            )

        probe = Probe(
            "a prompt",
            (("Rome", "Roma"), ("The Hague",)),
            kind,
            rng.choice(["A", "B"]),
            rival="city" if index % 3 else None,
            references=rng.choice([(), ("Rome is the capital of Italy", "The city of Rome")]),
            opposites=("Paris",) if kind is ProbeKind.SENTIMENT else (),
        )
        target = () if kind is ProbeKind.FLUENCY else tuple(rng.randint(0, 2) for _ in range(length))
        divergence = rng.choice([None, rng.random()])
        # On the metrics' grid of thresholds, so that areas are exact.
        probability = rng.randint(0, 100) / 100
        route = rng.choice([None, Route(probability, probability >= 0.5, is_probability=True)])
        right = None if route is None else rng.random() < 0.7
        if divergence is None and route is not None and route.hit:
            divergence = 0.5
        sample.append(EditOutcome(f"r{index // 3}", probe, target, answer(), answer(), divergence, route, right))
    return sample


def exact(text, aliases):
    line = text.strip().split("\n")[0].lower()
    ends = set(".,;:!?()\"'“”…–—")
    for alias in aliases:
        rest = line[len(alias) :].strip() if line.startswith(alias.lower()) else None
        if rest is not None and (not rest or rest[0] in ends):
            return 1.0
    return 0.0


def contains(text, aliases):
    padded = f" {''.join(c if c.isalnum() else ' ' for c in text.lower())} "
    return float(any(f" {alias.lower()} " in " ".join(padded.split()).join("  ") for alias in aliases))


def entropy(text):
    import re

    tokens = re.findall(r"\w+(?:['.]\w+)*|[^\w\s]", text)
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        count = sum(grams.values())
        total += weight * sum(-c / count * math.log2(c / count) for c in grams.values())
    return total / 2


def mean_p(values):
    return math.exp(sum(values) / len(values))


def wild(text, aliases):
    """SQuAD's comparison of the text up to the first full stop or newline, spelled out for ASCII."""

    def plain(value):
        words = "".join(c for c in value.lower() if c not in string.punctuation).split()
        return [word for word in words if word not in ("a", "an", "the")]

    return float(any(plain(text.lstrip().split(".")[0].split("\n")[0]) == plain(alias) for alias in aliases))


REFERENCES = {
    m.TokenAccuracy: lambda o, a: (
        sum(x == y for x, y in zip(a.predicted_ids, o.target_ids, strict=True)) / len(o.target_ids)
        if o.target_ids
        else None
    ),
    m.AllTokensMatch: lambda o, a: float(a.predicted_ids == o.target_ids) if o.target_ids else None,
    m.ProbabilityScore: lambda o, a: (
        float(mean_p(a.log_probs) > mean_p(a.rival_log_probs)) if a.rival_log_probs else None
    ),
    m.ProbabilityMagnitude: lambda o, a: mean_p(a.log_probs) - mean_p(a.rival_log_probs) if a.rival_log_probs else None,
    m.ExactMatch: lambda o, a: None if a.generation is None else exact(a.generation, o.probe.aliases),
    m.Containment: lambda o, a: None if a.generation is None else contains(a.generation, o.probe.aliases),
    m.WildMatch: lambda o, a: None if a.generation is None else wild(a.generation, o.probe.aliases),
    m.RivalContainment: lambda o, a: (
        None if a.generation is None or o.probe.rival is None else contains(a.generation, [o.probe.rival])
    ),
    m.NGramEntropy: lambda o, a: None if a.generation is None else entropy(a.generation),
    m.SelfAgreement: lambda o, a: (
        sum(x == y for x, y in zip(o.before.predicted_ids, o.after.predicted_ids, strict=True))
        / len(o.before.predicted_ids)
    ),
    m.GenerationAgreement: lambda o, a: (
        None
        if o.before.generation is None or o.after.generation is None
        else float(o.before.generation == o.after.generation)
    ),
    m.Divergence: lambda o, a: o.divergence,
    m.ScopeHitRate: lambda o, a: None if o.route is None else float(o.route.score >= 0.5),
    m.ChosenEditAccuracy: lambda o, a: None if o.right_request is None else float(o.right_request),
}


def reference(cls, sample, kind=None, group=None, average="probe", side="after"):
    values = {}
    for o in sample:
        if kind in (None, o.probe.kind) and group in (None, o.probe.group):
            value = REFERENCES[cls](o, o.before if side == "before" else o.after)
            if value is not None:
                values.setdefault(o.record_id, []).append(value)
    if average == "record":
        means = [sum(v) / len(v) for v in values.values()]
        return sum(means) / len(means)
    everything = [x for v in values.values() for x in v]
    return sum(everything) / len(everything)


def routed(sample):
    """(probability, in scope) of the outcomes that evaluate the router."""
    kinds = {ProbeKind.EDIT_SUCCESS: 1, ProbeKind.GENERALIZATION: 1, ProbeKind.LOCALITY: 0}
    return [(o.route.score, kinds[o.probe.kind]) for o in sample if o.route and o.probe.kind in kinds]


def test_auroc_is_the_probability_of_the_right_order():
    sample = outcomes(200)
    pairs = routed(sample)
    wins = [(p > q) + 0.5 * (p == q) for p, inside in pairs if inside for q, other in pairs if not other]
    metric = m.ScopeAUROC()
    assert math.isnan(float(metric.compute()))
    for start in range(0, 200, 50):
        metric.update(sample[start : start + 50])
    assert float(metric.compute()) == pytest.approx(sum(wins) / len(wins), abs=1e-5)
    assert float(pickle.loads(pickle.dumps(metric)).compute()) == float(metric.compute())
    metric.reset()
    assert math.isnan(float(metric.compute()))


def test_average_precision_and_the_curve_equal_plain_counts():
    sample = outcomes(200)
    pairs = routed(sample)
    positives = sum(inside for _, inside in pairs)
    area, last = 0.0, 0.0
    for threshold in sorted({p for p, _ in pairs}, reverse=True):
        hits = [inside for p, inside in pairs if p >= threshold]
        recall = sum(hits) / positives
        area += (recall - last) * sum(hits) / len(hits)
        last = recall
    metric = m.ScopeAveragePrecision()
    metric.update(sample)
    assert float(metric.compute()) == pytest.approx(area, abs=1e-4)
    for point in m.scope_curve(sample)[1:100:7]:
        hits = [inside for p, inside in pairs if p >= point["threshold"] - 1e-6]
        assert point["recall"] == pytest.approx(sum(hits) / positives, abs=1e-6)
        assert point["precision"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)
        false = (len(hits) - sum(hits)) / (len(pairs) - positives)
        assert point["false_hit_rate"] == pytest.approx(false, abs=1e-6)
    assert m.scope_curve([]) == []
    distances = [replace(one, route=Route(-3.0, True)) for one in sample]
    assert m.scope_curve(distances) == []


@pytest.mark.parametrize("settings", [
    {},
    {"kind": ProbeKind.LOCALITY, "group": "A"},
    {"average": "record"},
    {"kind": ProbeKind.PORTABILITY, "side": "before", "average": "record"},
])  # fmt: skip
@pytest.mark.parametrize("cls", REFERENCES)
def test_equals_a_plain_reference(cls, settings):
    sample = outcomes(150)
    metric = cls(**settings)
    for start in range(0, 150, 30):  # a record's outcomes come in one update
        metric.update(sample[start : start + 30])
    assert float(metric.compute()) == pytest.approx(reference(cls, sample, **settings), rel=1e-9)
    revived = pickle.loads(pickle.dumps(metric))
    assert float(revived.compute()) == float(metric.compute())
    metric.reset()
    assert math.isnan(float(metric.compute()))


def _share(rank, port, queue):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    sample = outcomes(90)
    collection = m.edit_metrics([(ProbeKind.LOCALITY, "A"), (ProbeKind.EDIT_SUCCESS, "B")])
    collection.update(sample[:69] if rank == 0 else sample[69:])
    # A process without any route must not leave the other one waiting.
    area = m.ScopeAUROC()
    area.update(sample if rank == 0 else [])
    queue.put((f"area {rank}", float(area.compute())))
    queue.put((rank, {name: float(value) for name, value in collection.compute().items()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shares_equal_one():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context(start_method()).SimpleQueue()
    mp.start_processes(_share, args=(port, queue), nprocs=2, start_method=start_method())
    results = dict(queue.get() for _ in range(4))
    assert results["area 0"] == results["area 1"] > 0
    alone = m.edit_metrics([(ProbeKind.LOCALITY, "A"), (ProbeKind.EDIT_SUCCESS, "B")])
    alone.update(outcomes(90))
    expected = {name: float(value) for name, value in alone.compute().items()}
    assert results[0] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert results[1] == pytest.approx(results[0], rel=0, nan_ok=True)


def test_equal_metrics_are_not_merged():
    collection = m.edit_metrics([(ProbeKind.LOCALITY, "A"), (ProbeKind.LOCALITY, "B")])
    collection.update(outcomes(60))
    values = collection.compute()
    assert values["locality/a/self_agreement"] != values["locality/b/self_agreement"]


@pytest.mark.parametrize(
    ("text", "match", "inside"),
    [
        (" Rome.\nNext", 1.0, 1.0),
        (" Rome, Italy", 1.0, 1.0),
        (" Rome is old", 0.0, 1.0),
        (" the city of Rome", 0.0, 1.0),
        (" Romeo", 0.0, 0.0),
        ("", 0.0, 0.0),
        (" ROME", 1.0, 1.0),
    ],
)
def test_free_generation(text, match, inside):
    assert m.exact_match(text, ["Rome"]) == match
    assert m.containment(text, ["Rome"]) == inside
    assert m.exact_match(text, ["Paris", "Rome"]) == match


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Rome", 1.0),
        (" Rome. Rome is", 1.0),
        (" the Rome,\nand", 1.0),
        (" Rome, the city", 0.0),
        (" rome!", 1.0),
        ("\nRome\nParis", 1.0),
        (" in Rome", 0.0),
        ("", 0.0),
    ],
)
def test_wild_match(text, expected):
    assert m.wild_match(text, ["Paris", "Rome"]) == expected


def test_the_rival_in_the_text_is_counted_against_the_edit():
    probe = Probe("a", (("Rome",),), ProbeKind.EDIT_SUCCESS, rival="Paris")
    for text, held in ((" Paris, not Rome", 1.0), (" Rome", 0.0), (" Parisian", 0.0)):
        outcome = EditOutcome("r", probe, (1,), Answer(generation=" Paris"), Answer(generation=text))
        assert m.RivalContainment().value(outcome) == held
    neutral = Probe("a", (("Rome",),), ProbeKind.EDIT_SUCCESS)
    assert m.RivalContainment().value(EditOutcome("r", neutral, (1,), Answer(), Answer(generation="x"))) is None


def test_aliases_with_punctuation():
    assert m.exact_match(" Washington, D.C. is", ["Washington, D.C."]) == 0.0
    assert m.exact_match(" Washington, D.C.\n", ["Washington, D.C."]) == 1.0
    assert m.containment("calls to +33 work", ["+33"]) == 1.0
    assert m.containment("it ends with .fr", [".fr"]) == 1.0


def test_a_missing_divergence_in_scope_makes_the_mean_infinite():
    """A model with other tokens has no divergence; a mean over the prompts out of scope would hide that."""
    probe = Probe("p", (("x",),), ProbeKind.LOCALITY)
    request = EditRequest("p", "x")

    def outcome(divergence, hit):
        return EditOutcome("r", probe, (1,), Answer(), Answer(), divergence, Route(0.9, hit, (request,)))

    metric = m.Divergence()
    metric.update([outcome(0.0, False), outcome(0.5, True)])
    assert float(metric.compute()) == 0.25
    metric.update([outcome(None, True)])
    assert math.isinf(float(metric.compute()))


def test_values_that_are_not_finite_are_counted_and_poison_the_mean():
    probe = Probe("p", (("x",),), ProbeKind.LOCALITY)

    def outcome(divergence, log_prob=-0.5):
        answer = Answer((1,), (log_prob,), (-1.0,))
        return EditOutcome("r", probe, (1,), answer, answer, divergence)

    collection = m.edit_metrics([(ProbeKind.LOCALITY, "")])
    collection.update([outcome(0.5), outcome(math.nan, math.nan), outcome(math.inf)])
    values = {name: float(value) for name, value in collection.compute().items()}
    assert math.isinf(values["locality/kl_divergence"])
    assert math.isinf(values["locality/probability_magnitude"])
    assert values["locality/token_accuracy"] == 1.0
    assert math.isnan(values["locality/exact_match"]), "nothing was generated"
    metric = m.Divergence()
    metric.update([outcome(0.5), outcome(math.nan)])
    assert float(metric.not_finite) == 1.0


def test_every_measure_of_a_prediction_is_one_of_the_collection():
    sample = outcomes(90)
    names = {measure.name for measure in m.MEASURES}
    for outcome in sample:
        kind, group = outcome.probe.kind, outcome.probe.group
        values = m.measures_of(outcome)
        assert values.keys() <= names
        collection = m.edit_metrics([(kind, group)])
        collection.update([outcome])
        means = {name: float(value) for name, value in collection.compute().items() if not math.isnan(value)}
        [prefix] = m.metric_prefixes([(kind, group)]).values()
        assert means == pytest.approx({f"{prefix}/{name}": value for name, value in values.items()})


def test_groups_keep_their_names_apart():
    groups = [(ProbeKind.LOCALITY, name) for name in ("常识", "推理", "Same Relation", "same-relation", "", "Größe")]
    prefixes = list(m.metric_prefixes(groups).values())
    assert prefixes == [
        "locality/常识",
        "locality/推理",
        "locality/same_relation",
        "locality/same_relation_2",
        "locality",
        "locality/grösse",
    ]


@pytest.mark.parametrize(
    ("text", "answer", "match", "inside"),
    [
        ("罗马。", "罗马", 1.0, 1.0),
        ("首都是罗马。", "罗马", 0.0, 1.0),
        ("罗马", "罗马", 1.0, 1.0),
        ("रोम।", "रोम", 1.0, 1.0),
        ("भारतीय", "भारत", 0.0, 0.0),
        ("روما، وهي مدينة", "روما", 1.0, 1.0),
        ("กรุงโรม", "โรม", 0.0, 1.0),
        ("โรม!", "โรม", 1.0, 1.0),
        ("로마는 도시", "로마", 0.0, 1.0),
        ("Рим, столица", "Рим", 1.0, 1.0),
        ("Римская", "Рим", 0.0, 0.0),
        ("3.5 km", "3", 0.0, 0.0),
        ("3,500", "3", 0.0, 0.0),
        ("10:30", "10", 0.0, 0.0),
        ("3. It is", "3", 1.0, 1.0),
        ("3, then", "3", 1.0, 1.0),
        ("at 10: the", "10", 0.0, 1.0),
        ("5%", "5", 0.0, 1.0),
        ("Rome's", "Rome", 0.0, 1.0),
        ("Rome’s", "Rome", 0.0, 1.0),
        ("Rome.The city", "Rome", 1.0, 1.0),
        ("Rome-based", "Rome", 0.0, 1.0),
        ("“Rome”", "Rome", 0.0, 1.0),
        ("Rome” said", "Rome", 1.0, 1.0),
        ("Zoë", "Zoe", 0.0, 0.0),
        ("Zoe\u0308", "Zoë", 1.0, 1.0),
    ],
)
def test_free_generation_in_every_script(text, answer, match, inside):
    assert m.exact_match(text, [answer]) == match
    assert m.containment(text, [answer]) == inside


def test_the_entropy_of_scripts_without_spaces_counts_characters():
    assert m.ngram_entropy("罗马是意大利的首都也是最大的城市") > 2
    assert m.ngram_entropy("罗马罗马罗马罗马罗马罗马") < 2


def test_divergence_is_the_kl_of_float64():
    p, q = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_divergence(p, q), expected, rtol=1e-12, atol=1e-12)


def test_fluency_punishes_repetition():
    varied = "the quick brown fox jumps over a lazy dog near the river bank at dawn"
    assert m.ngram_entropy(varied) > m.ngram_entropy("the cat the cat the cat the cat the cat")
    assert m.ngram_entropy("") == 0.0


def test_consistency_against_a_hand_computed_cosine():
    references = ["alpha beta", "alpha gamma"]
    generation = "alpha beta beta"
    documents = [*references, generation]
    vocabulary = ["alpha", "beta", "gamma"]
    idf = {w: math.log((1 + 3) / (1 + sum(w in d.split() for d in documents))) + 1 for w in vocabulary}

    def vector(text):
        counts = Counter(text.split())
        values = [counts[w] * idf[w] for w in vocabulary]
        norm = math.sqrt(sum(v * v for v in values))
        return [v / norm for v in values]

    expected = sum(a * b for a, b in zip(vector(generation), vector(" ".join(references)), strict=True))
    assert m.tfidf_similarity(generation, references) == pytest.approx(expected, rel=1e-9)
    metric = m.TfidfConsistency()
    probe = Probe("p", (), ProbeKind.FLUENCY, references=tuple(references))
    metric.update([EditOutcome("r", probe, (), Answer(), Answer(generation=generation))])
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("answer", [math.nan, -0.5])
@pytest.mark.parametrize("rival", [math.nan, -1.0])
def test_a_comparison_with_a_probability_that_is_no_number_is_none(answer, rival):
    value = m.probability_score([answer], [rival])
    assert math.isnan(value) == (math.isnan(answer) or math.isnan(rival))


@pytest.mark.parametrize(
    ("generation", "references"),
    [("東京は日本の首都", ["東京都は日本にある"]), ("กรุงเทพเป็นเมืองหลวง", ["กรุงเทพเป็นเมือง"])],
)
def test_consistency_of_scripts_without_spaces_compares_characters(generation, references):
    """A regular expression finds a single word in each text, and so no overlap."""
    value = m.tfidf_similarity(generation, references)
    assert 0.2 < value < 0.99
    assert m.tfidf_similarity(generation, [generation]) == pytest.approx(1)
    assert m.tfidf_similarity(generation, ["Ω"]) == 0
    spaced = [" ".join(text) for text in (generation, *references)]
    if generation.startswith("東"):
        assert value == pytest.approx(m.tfidf_similarity(spaced[0], spaced[1:]), rel=1e-9)


def test_further_metrics_are_named_by_what_they_are_restricted_to():
    metrics = [
        m.TokenAccuracy(),
        m.TokenAccuracy(kind="locality"),
        m.TokenAccuracy(kind=ProbeKind.LOCALITY, group="near", side="before"),
    ]
    names = ["token_accuracy", "locality/token_accuracy", "locality/near/token_accuracy_before"]
    assert list(metric_names(metrics)) == names
    with pytest.raises(ConfigurationError, match="two metrics are named locality/token_accuracy"):
        metric_names([metrics[1], m.TokenAccuracy(kind="locality")])
    with pytest.raises(ConfigurationError, match="near/token_accuracy_before is measured already"):
        m.edit_metrics([(ProbeKind.LOCALITY, "near")], extra=metric_names(metrics[2:]))
    with pytest.raises(ConfigurationError, match=r"TokenAccuracy.kind: expected one of .*found 'nearby'"):
        m.TokenAccuracy(kind="nearby")
