"""Methods that route prompts: text in front of the prompt, codebooks, clusters and side memories."""

import pytest
import torch

from lightning_edit.editors import GRACE, ICE, IKE, MELO, SCR, WISE, TuningSettings
from lightning_edit.editors.codebook import ABSORBED, Codebook
from lightning_edit.edits import EditSequence, Memory, load_edit
from lightning_edit.errors import ConfigurationError, EditError, EditorNotFittedError
from lightning_edit.functional.ties import ties_merge
from lightning_edit.records import EditRecord, EditRequest, Probe, ProbeKind
from tests.testers import PROBES, REQUESTS, EditorTester, log_prob
from tests.tiny_models import language_model

TUNING = TuningSettings(steps=12, learning_rate=0.5, skip_below=0, stop_below=0)


def training_records(count=6):
    return [
        EditRecord(
            str(index),
            (EditRequest(f"The colour of house {index} is", f"blue {index}", f"house {index}"),),
            (
                Probe(f"House {index} is coloured", ((f"blue {index}",),), ProbeKind.GENERALIZATION),
                Probe(f"The owner of house {index} is", (("Ann",),), ProbeKind.LOCALITY),
            ),
        )
        for index in range(count)
    ]


class TestGRACE(EditorTester):
    def make(self, model):
        return GRACE(site=-2, radius=0.5, tuning=TUNING)


class TestMELO(EditorTester):
    def make(self, model):
        tuning = TuningSettings(12, 0.05, skip_below=0)
        return MELO(key_site=-3, sites=[-2, -1], radius=0.5, edits_per_block=1, scale=4.0, tuning=tuning)


class TestWISE(EditorTester):
    a_sequence_is_the_joint_edit = False

    def make(self, model):
        return WISE(
            site=-2,
            mask_ratio=0.5,
            contexts=["{}", "So: {}"],
            unrelated=["Water boils at noon"],
            activation_ratio=0.5,
            tuning=TuningSettings(steps=12, learning_rate=0.05, skip_below=0, stop_below=0),
        )


class TextEditorTester(EditorTester):
    """Text needs more positions than some tiny models have, and a random model does not copy from its prompt."""

    minimum_effect = None
    families = ("llama", "gemma2")


class TestICE(TextEditorTester):
    def make(self, model):
        return ICE()


class TestSCR(TextEditorTester):
    def make(self, model):
        return SCR(confirm=False, threshold=0.6)


class TestIKE(TextEditorTester):
    def make(self, model):
        editor = IKE(demonstrations=1)
        editor.index(training_records())
        return editor


@pytest.fixture(scope="module")
def model():
    return language_model("llama")


def codebook(keys, targets, radius=1.0):
    """The codebook after adding the items one by one."""
    router = Codebook("site", radius)
    memory = None
    for index, (key, target) in enumerate(zip(keys, targets, strict=True)):
        request = EditRequest(f"Question {index}", target, id=str(index))
        item = Memory(
            ((request,),),
            {"key": torch.tensor([key]), "value": torch.zeros(1, 2), "radius": torch.tensor([radius])},
        )
        memory = router.join(memory if memory is not None else item.select([]), item)
    return memory


def test_the_text_is_prepended_to_the_prompt(model):
    request = REQUESTS[0]
    with ICE().edit(model, [request]).applied(model) as edited:
        [score] = edited.score([PROBES[0]], ["Rome"])
        [text] = edited.generate([PROBES[0]], 4)
    shown = f"Imagine that {request.prompt} {request.target}.\n{PROBES[0]}"
    assert score.log_probs == model.score([shown], ["Rome"])[0].log_probs
    assert text == model.generate([shown], 4)[0]


def test_facts_of_a_sequence_are_concatenated(model):
    sequence = EditSequence([ICE().edit(model, [request]) for request in REQUESTS])
    assert len(sequence.layers) == 1
    facts = "".join(f"Imagine that {request.prompt} {request.target}.\n" for request in REQUESTS)
    with sequence.applied(model) as edited:
        assert edited.generate([PROBES[0]], 4) == model.generate([facts + PROBES[0]], 4)
    assert sequence.without(sequence.ids[1]).layers[0].request_ids == ("france", "brazil")


def test_demonstrations_come_in_the_published_ratio_with_the_nearest_last():
    from lightning_edit.editors.ike import _kinds

    assert {kind: _kinds(32).count(kind) for kind in ("copy", "update", "retain")} == {
        "copy": 4,
        "update": 12,
        "retain": 16,
    }
    assert all(len(_kinds(count)) == count for count in range(1, 40))
    editor = IKE(demonstrations=4)
    with pytest.raises(EditorNotFittedError):
        editor.edit(language_model("llama"), REQUESTS[:1])
    editor.index(training_records(30))
    request = EditRequest("The colour of house 17 is", "red", "house 17")
    text = editor.text_of(language_model("llama"), [request])
    blocks = text.split("\n\n")
    assert len(blocks) == 4 + 1 + 1
    assert "house 17" in blocks[3]
    assert blocks[4] == f"New Fact: {request.prompt} red\nPrompt: {request.prompt} red"
    assert blocks[5] == f"New Fact: {request.prompt} red\n"
    assert text == editor.text_of(language_model("llama"), [request])


def test_demonstrations_of_a_sequence_come_before_all_of_its_facts(model):
    editor = IKE(demonstrations=2)
    editor.index(training_records())
    sequence = EditSequence([editor.edit(model, [request]) for request in REQUESTS[:2]])
    [layer] = sequence.layers
    [text] = layer.memory.texts
    assert text == editor.text_of(model, REQUESTS[:2])
    assert text.endswith("\n\n" + "".join(f"New Fact: {one.prompt} {one.target}\n" for one in REQUESTS[:2]))
    assert "Prompt: New Fact" not in text
    shown = f"{text}Prompt: {PROBES[0]}"
    with sequence.applied(model) as edited:
        assert edited.score([PROBES[0]], ["Rome"])[0].log_probs == model.score([shown], ["Rome"])[0].log_probs


def test_an_index_is_part_of_the_checkpoint(model):
    editor, other = IKE(demonstrations=3), IKE(demonstrations=3)
    editor.index(training_records())
    other.load_state_dict(editor.state_dict())
    assert other.text_of(model, REQUESTS[:1]) == editor.text_of(model, REQUESTS[:1])


def test_scr_retrieves_the_fact_and_leaves_other_prompts_alone(model):
    with SCR(confirm=False, threshold=0.5).edit(model, REQUESTS).applied(model) as edited:
        routes = edited.routes(["What is the capital of Germany?", "Water boils at"])
        assert [route.hit for route in routes] == [True, False]
        assert routes[0].request.id == "germany"
        assert edited.generate(["Water boils at"], 3) == model.generate(["Water boils at"], 3)


def test_the_models_confirmation_decides_in_scr(model, monkeypatch):
    asked = []

    def answers(prompts, *_):
        asked.extend(prompts)
        confirmed = "The fact: On which continent is Brazil? Europe."
        return ["No relevant fact." if "Water" in prompt else confirmed for prompt in prompts]

    with SCR(retrieved=2).edit(model, REQUESTS).applied(model) as edited:
        monkeypatch.setattr(model, "generate", answers)
        routes = edited.routes(["Where is Brazil?", "Water boils at"])
    assert [route.hit for route in routes] == [True, False]
    assert routes[0].request.id == "brazil"
    assert all(prompt.count("\n") and "Facts: " in prompt for prompt in asked)


class TestGraceRules:
    def test_distant_keys_are_added(self):
        memory = codebook([[0.0, 0.0], [5.0, 0.0]], ["a", "b"])
        assert memory.tensors["radius"].tolist() == [1.0, 1.0]

    def test_a_near_key_with_the_same_target_expands_the_radius(self):
        memory = codebook([[0.0, 0.0], [1.5, 0.0]], ["a", "a"])
        assert memory.tensors["radius"].tolist() == [1.5, -1.0]

    def test_a_near_key_with_another_target_splits(self):
        memory = codebook([[0.0, 0.0], [1.0, 0.0]], ["a", "b"])
        assert memory.tensors["radius"].tolist() == pytest.approx([0.5 - 1e-5, 0.5])

    def test_the_boundary_belongs_to_the_neighbour(self):
        assert codebook([[0.0, 0.0], [2.0, 0.0]], ["a", "a"]).tensors["radius"].tolist() == [2.0, -1.0]
        assert codebook([[0.0, 0.0], [2.001, 0.0]], ["a", "a"]).tensors["radius"].tolist() == [1.0, 1.0]

    def test_radii_are_those_of_the_authors_code(self):
        """Thartvigsen/GRACE at f674183: GRACEAdapter with a linear layer, driven with these keys and labels."""
        keys = [
            [0.0, 0.0], [5.0, 0.0], [1.5, 0.0], [0.5, 0.5], [0.0, 2.25], [5.0, 2.0], [7.25, 0.0], [7.25, 0.3],
            [7.25, -0.9], [8.35, 0.0], [-10.0, -10.0],
        ]  # fmt: skip
        labels = ["1", "2", "1", "1", "3", "2", "4", "5", "4", "6", "1"]
        expected = {
            1: [1.0], 2: [1.0, 1.0], 3: [1.5, 1.0], 4: [1.5, 1.0], 5: [1.12499, 1.0, 1.125],
            6: [1.12499, 2.0, 1.125], 7: [1.12499, 1.12499, 1.125, 1.125],
            8: [1.12499, 1.12499, 1.125, 0.14999, 0.15], 9: [1.12499, 1.12499, 1.125, 0.9, 0.15],
            10: [1.12499, 1.12499, 1.125, 0.54999, 0.15, 0.55],
            11: [1.12499, 1.12499, 1.125, 0.54999, 0.15, 0.55, 1.0],
        }  # fmt: skip
        for count, radii in expected.items():
            actual = codebook(keys[:count], labels[:count]).tensors["radius"].tolist()
            assert [radius for radius in actual if radius != ABSORBED] == pytest.approx(radii, abs=1e-6), count

    def test_undoing_a_request_equals_never_adding_it(self, model):
        editor = GRACE(site=-2, radius=30.0, tuning=TUNING)
        joint = editor.edit(model, REQUESTS)
        without = joint.without("germany")
        expected = editor.edit(model, [REQUESTS[0], REQUESTS[2]])
        torch.testing.assert_close(without.memory.tensors["radius"], expected.memory.tensors["radius"])
        torch.testing.assert_close(without.memory.tensors["value"], expected.memory.tensors["value"])

    def test_a_sequence_is_the_joint_codebook(self, model):
        editor = GRACE(site=-2, radius=5.0, tuning=TUNING)
        sequence = EditSequence([editor.edit(model, [request]) for request in REQUESTS])
        assert len(sequence.layers) == 1
        expected = editor.edit(model, REQUESTS)
        torch.testing.assert_close(sequence.layers[0].memory.tensors["radius"], expected.memory.tensors["radius"])
        undone = sequence.without(sequence.ids[0])
        assert undone.layers[0].request_ids == ("germany", "brazil")


@pytest.mark.parametrize("replacement", ["replace_prompt", "replace_last", "replace_all"])
def test_a_value_replaces_the_output_at_the_right_tokens(model, replacement):
    """Against the model with its site's output overwritten by hand, over the whole text of each decoding step."""
    request = REQUESTS[1]
    edit = GRACE(site=-2, radius=5.0, replacement=replacement, tuning=TUNING).edit(model, [request])
    value, site = edit.memory.tensors["value"][0], model.layer_map.site(-2)
    prompt = model.encoder.encode(request.prompt).ids

    def by_hand(ids):
        def hook(module, args, output):
            changed = output.clone()
            last = len(prompt) - 1
            where = {"replace_prompt": slice(last + 1), "replace_last": slice(last, None), "replace_all": slice(None)}
            changed[:, where[replacement]] = value
            return changed

        handle = site.module.register_forward_hook(hook)
        logits = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        handle.remove()
        return logits

    ids = list(prompt)
    for _ in range(4):
        ids.append(int(by_hand(ids)[-1].argmax()))
    with edit.applied(model) as edited:
        [text] = edited.generate([request.prompt, PROBES[0]], 4)[:1]
        [score] = edited.score([request.prompt], [request.target])
    assert text == model.encoder.decode(ids[len(prompt) :])
    full = model.encoder.encode(request.prompt, request.target)
    logits = by_hand(list(full.ids))
    expected = [float(logits[place - 1, full.ids[place]]) for place in range(*full.target)]
    assert score.log_probs == pytest.approx(expected, abs=1e-4)


def test_generation_without_a_cache_is_refused_only_where_positions_count(model):
    edit = GRACE(site=-2, radius=5.0, tuning=TUNING).edit(model, REQUESTS[:1])
    with edit.applied(model) as edited, pytest.raises(EditError, match="use_cache"):
        edited.generate([REQUESTS[0].prompt], 4, use_cache=False)
    everywhere = GRACE(site=-2, radius=5.0, replacement="replace_all", tuning=TUNING).edit(model, REQUESTS[:1])
    with everywhere.applied(model) as edited:
        expected = edited.generate([REQUESTS[0].prompt], 4)
        assert edited.generate([REQUESTS[0].prompt], 4, use_cache=False) == expected


def test_ties_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    changes = torch.randn(3, 5, 4, generator=generator)
    kept = []
    for change in changes:
        threshold = change.abs().flatten().sort(descending=True).values[9]
        kept.append(torch.where(change.abs() >= threshold, change, 0.0))
    expected = torch.zeros(5, 4)
    for row in range(5):
        for column in range(4):
            values = [float(change[row, column]) for change in kept]
            sign = 1 if sum(values) >= 0 else -1
            agreeing = [value for value in values if value * sign > 0]
            expected[row, column] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    torch.testing.assert_close(ties_merge(changes, 0.5), expected)


def test_side_memories_are_merged_once_there_are_enough(model):
    editor = WISE(
        site=-2, contexts=["{}"], unrelated=["Water boils"], merge_every=2, density=1.0,
        tuning=TuningSettings(steps=3, learning_rate=0.05, skip_below=0, stop_below=0),
    )  # fmt: skip
    edits = [editor.edit(model, [request]) for request in REQUESTS]
    sequence = EditSequence(edits)
    memory = sequence.layers[0].memory
    assert sorted(memory.tensors["shards"].tolist()) == [1, 2]
    assert [len(requests) for requests in memory.requests] == [2, 1] or [
        len(requests) for requests in memory.requests
    ] == [1, 2]
    merged = memory.tensors["matrix"][memory.tensors["shards"].tolist().index(2)]
    expected = ties_merge(torch.cat([edit.memory.tensors["matrix"] for edit in edits[:2]]), 1.0)
    torch.testing.assert_close(merged, expected)


def test_masks_leave_the_other_elements_alone(model):
    editor = WISE(
        site=-2, mask_ratio=0.2, contexts=["{}"], unrelated=["Water boils"],
        tuning=TuningSettings(steps=3, learning_rate=0.05, skip_below=0, stop_below=0),
    )  # fmt: skip
    matrix = editor.edit(model, REQUESTS[:1]).memory.tensors["matrix"][0]
    share = float((matrix != 0).float().mean())
    assert 0.1 < share < 0.3


def test_clusters_join_split_and_forget():
    from lightning_edit.editors.clusters import Clusters

    def clusters(keys, targets):
        router, memory = Clusters("site", 1.0), None
        for index, (key, target) in enumerate(zip(keys, targets, strict=True)):
            point = torch.tensor([key])
            item = Memory(
                ((EditRequest(f"Question {index}", target, id=str(index)),),),
                {"key": point, "centre": point, "radius": torch.tensor([1.0])},
            )
            memory = router.join(memory if memory is not None else item.select([]), item)
        return memory

    joined = clusters([[0.0, 0.0], [1.6, 0.0]], ["a", "a"])
    torch.testing.assert_close(joined.tensors["centre"], torch.tensor([[0.8, 0.0]] * 2))
    assert joined.tensors["radius"].tolist() == [1.0, 1.0]
    wide = clusters([[0.0, 0.0], [1.9, 0.0], [2.9, 0.0]], ["a", "a", "a"])
    assert wide.tensors["radius"].tolist() == pytest.approx([1.6, 1.6, 1.6], abs=1e-5)
    split = clusters([[0.0, 0.0], [1.6, 0.0], [0.8, 0.5]], ["a", "a", "b"])
    assert split.tensors["radius"].tolist() == pytest.approx([-1.0, -1.0, 0.25 + 1e-5])


def test_routed_edits_are_loaded_from_a_file(model, tmp_path):
    for editor in (GRACE(site=-2, radius=0.5, tuning=TUNING), ICE(), SCR(confirm=False, threshold=0.6)):
        edit = editor.edit(model, REQUESTS)
        loaded = load_edit(edit.save(tmp_path / type(editor).__name__))
        with edit.applied(model) as edited:
            expected = [log_prob(edited, request) for request in REQUESTS]
        with loaded.applied(model) as edited:
            assert [log_prob(edited, request) for request in REQUESTS] == pytest.approx(expected, abs=1e-5)


def test_settings_are_checked():
    for build in (
        lambda: GRACE(radius=0),
        lambda: GRACE(replacement="replace_some"),
        lambda: MELO(rank=0),
        lambda: WISE(mask_ratio=0),
        lambda: WISE(merge_every=1),
        lambda: ICE(fact="no place"),
        lambda: SCR(retrieved=0),
        lambda: IKE(demonstrations=0),
    ):
        with pytest.raises(ConfigurationError, match=r"editor\."):
            build()


@pytest.mark.filterwarnings("ignore:a prompt fills")
def test_a_long_prompt_is_told_apart_by_its_end():
    """The encoder reads 256 tokens: the question at the end counts, not the text before it that all prompts share."""
    from lightning_edit.models.scope import EmbeddingScope

    scope = EmbeddingScope("all-minilm-l6-v2").eval()
    preamble = "The weather was fine, and nothing happened that day that anyone would remember later. " * 20
    with pytest.warns(UserWarning, match="exceeds the 256 tokens"):
        edited, same, other = scope.embed(
            [
                preamble + "What is the capital of France?",
                preamble + "The capital of France is",
                preamble + "Who invented the telephone?",
            ]
        )
    assert float(edited @ same) > float(edited @ other) + 0.01
