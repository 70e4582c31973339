from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_edit.editors import SERAC
from lightning_edit.edits import EditSequence, Memory, RoutedEdit, load_edit
from lightning_edit.edits.responders import translated_score
from lightning_edit.errors import ConfigurationError, EditError, EditorNotFittedError, SourceNotFoundError
from lightning_edit.functional.losses import target_nll
from lightning_edit.models import load_language_model
from lightning_edit.models.counterfactual import prepend_request
from lightning_edit.models.scope import CrossAttentionScope, EmbeddingScope
from lightning_edit.models.trunk import Trunk
from lightning_edit.records import EditRequest
from tests.testers import PROBES, REQUESTS, EditorTester, assert_untouched, log_prob, state, target_log_probs
from tests.tiny_models import FAMILIES, build, language_model


def fitted(model, steps=12, **settings):
    """A SERAC whose adapter has learned to repeat what it is shown, for the shared suite's requests."""
    torch.manual_seed(0)
    editor = SERAC(rank=4, adapted_layers=2, **settings)
    editor.setup(model)
    counterfactual = editor.answering_model
    optimizer = torch.optim.Adam(counterfactual.parameters(), lr=0.03)
    for _ in range(steps):
        with counterfactual.answering(model) as other:
            texts = [
                other.encoder.encode(prepend_request(request, request.prompt), request.target) for request in REQUESTS
            ]
            batch = other.encoder.collate(texts)
            loss = target_nll(other.answer_logits(batch), batch.target_ids, batch.target_rows, len(batch)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return editor.eval()


class TestSERAC(EditorTester):
    def make(self, model):
        return fitted(model)


@pytest.fixture(scope="module")
def model():
    return language_model("llama")


@pytest.fixture(scope="module")
def editor(model):
    return fitted(model)


def test_the_base_is_the_same_object_after_setup_and_use():
    model = language_model("gpt2")
    before, modules = state(model), {name: id(module) for name, module in model.model.named_modules()}
    editor = fitted(model)
    with editor.edit(model, REQUESTS).applied(model) as edited:
        edited.generate([REQUESTS[0].prompt], 3)
    assert {name: id(module) for name, module in model.model.named_modules()} == modules
    assert_untouched(model, before)


def test_out_of_scope_the_base_answers_untouched(model, editor):
    texts = ["Water boils at", "My favourite colour is"]
    with editor.edit(model, REQUESTS).applied(model) as edited:
        scores = edited.score(texts, ["noon", "blue"])
        assert edited.generate(texts, 5) == model.generate(texts, 5)
        assert not any(route.hit for route in edited.routes(texts))
    plain = model.score(texts, ["noon", "blue"])
    assert [score.log_probs for score in scores] == [score.log_probs for score in plain]


def test_routes_name_the_request_and_follow_the_threshold(model, editor):
    rephrase = "France's capital city is"
    with editor.edit(model, REQUESTS).applied(model) as edited:
        [route] = edited.routes([rephrase])
    assert route.hit
    assert route.request.id == "france"
    assert 0.5 < route.score <= 1
    editor.threshold = 0.999
    with editor.edit(model, REQUESTS).applied(model) as edited:
        [route] = edited.routes([rephrase])
    editor.threshold = 0.5
    assert not route.hit
    assert route.request.id == "france"


def test_the_route_does_not_see_the_target(model, editor, monkeypatch):
    edit, seen = editor.edit(model, REQUESTS), []
    similarity = edit.router.classifier.log_similarity
    monkeypatch.setattr(
        edit.router.classifier,
        "log_similarity",
        lambda prompts, keys: seen.extend(prompts) or similarity(prompts, keys),
    )
    with edit.applied(model) as edited:
        edited.score(["Tell me:"] * 2, ["The capital of France is Rome", "blue"])
    assert seen == ["Tell me:"]


def test_in_scope_the_answer_is_the_counterfactual_models(model, editor):
    request = REQUESTS[0]
    with editor.edit(model, [request]).applied(model) as edited:
        [score] = edited.score([request.prompt], [request.target])
    with editor.answering_model.answering(model) as other:
        [expected] = other.score([f"{request.prompt} {request.target}\n{request.prompt}"], [request.target])
    assert score.log_probs == expected.log_probs


def test_divergence_from_the_base_is_measured_in_and_out_of_scope(model, editor):
    prompts, targets = [REQUESTS[0].prompt, "Water boils at"], ["Rome", "noon"]
    references = [score.head_input for score in model.score(prompts, targets, keep_head_input=True)]
    with editor.edit(model, REQUESTS).applied(model) as edited:
        inside, outside = edited.score(prompts, targets, references)
    assert inside.divergence > 1e-3
    assert outside.divergence == pytest.approx(0, abs=1e-6)


def test_requests_are_added_replaced_and_removed(model, editor):
    edit = editor.edit(model, REQUESTS[:2])
    assert edit.request_ids == ("france", "germany")
    more = edit.joined(editor.edit(model, [REQUESTS[2], replace(REQUESTS[0], target="Oslo", id="new")]))
    assert more.request_ids == ("germany", "brazil", "new")
    assert more.provenance.requests == more.memory.all_requests
    with more.applied(model) as edited:
        [route] = edited.routes([REQUESTS[0].prompt])
    assert route.request.target == "Oslo"
    less = more.without("new")
    assert less.request_ids == ("germany", "brazil")
    with less.applied(model) as edited:
        [route] = edited.routes([REQUESTS[0].prompt])
    assert route.request.id != "new"
    assert edit.request_ids == ("france", "germany")
    with pytest.raises(EditError, match="no request 'new'"):
        less.without("new")
    empty = less.without("germany").without("brazil")
    with empty.applied(model) as edited:
        assert edited.generate(PROBES, 3) == model.generate(PROBES, 3)
    assert empty.joined(editor.edit(model, REQUESTS[:1])).request_ids == ("france",)


def test_a_loaded_edit_works_on_another_instance_of_the_base(editor, model, tmp_path):
    edit = editor.edit(model, REQUESTS)
    with edit.applied(model) as edited:
        expected = target_log_probs(edited, REQUESTS)
    loaded = load_edit(edit.save(tmp_path / "edit"))
    other = language_model("llama")
    with loaded.applied(other) as edited:
        assert target_log_probs(edited, REQUESTS) == pytest.approx(expected, abs=1e-5)
    with loaded.applied(model) as edited:
        assert target_log_probs(edited, REQUESTS) == pytest.approx(expected, abs=1e-5)
    water = editor.edit(model, [EditRequest("Water boils at", "noon", id="water")])
    assert loaded.joined(water).request_ids[-1] == "water"


class Operations(TorchDispatchMode):
    """Records the operations that run in a context."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_routing_in_a_large_memory_is_one_product(model, editor):
    """A memory a thousand times as large needs no more operations."""
    prompts = [f"Question number {index} about something else:" for index in range(8)]
    keys = torch.nn.functional.normalize(torch.randn(10_000, 384), dim=1)
    requests = tuple(EditRequest(f"Fact {index} is", "so", id=str(index)) for index in range(10_000))

    def operations(count):
        memory = Memory(tuple((request,) for request in requests[:count]), {"keys": keys[:count]})
        one = editor.edit(model, REQUESTS[:1])
        edit = RoutedEdit(memory, one.router, one.responder, one.provenance)
        with edit.applied(model) as edited, Operations() as seen:
            assert len(edited.routes(prompts)) == 8
        return seen.names

    few = operations(10)
    assert "aten.mm.default" in few
    assert operations(10_000) == few


def test_embedding_similarity_is_the_paper_formula():
    classifier = EmbeddingScope()
    with torch.no_grad():
        classifier.log_scale.fill_(0.7)
        classifier.projection.weight.add_(0.05 * torch.randn(384, 384))
        prompts, remembered = ["What is the capital of France?", "Who wrote Faust?"], ["The capital of France is"]
        actual = classifier.log_similarity(prompts, classifier.remember(remembered)).exp()
        for row, prompt in enumerate(prompts):
            difference = classifier.embed([prompt])[0] - classifier.embed(remembered)[0]
            expected = torch.exp(-torch.tensor(0.7).exp() * difference.double().square().sum())
            assert float(actual[row, 0]) == pytest.approx(float(expected), rel=1e-4)


def test_only_the_projection_is_stored_unless_the_encoder_is_trained(editor):
    names = set(editor.state_dict())
    assert {name for name in names if name.startswith("scope.")} == {"scope.projection.weight", "scope.log_scale"}
    assert sum(value.numel() * 4 for value in editor.state_dict().values()) < 2e6
    sizes = {}
    for layers in (0, 1, 2, -1):
        scope = EmbeddingScope(trained_layers=layers).train()
        scope.embed(["a text"]).sum().backward()
        trained = {name for name, parameter in scope.named_parameters() if parameter.grad is not None}
        assert trained == {name for name, _ in scope.named_parameters() if "pooler" not in name} - {"log_scale"}
        sizes[layers] = sum(value.numel() for value in scope.state_dict().values())
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 0
    assert sizes[-1] > sizes[2]
    with pytest.raises(ConfigurationError, match="has 6 layers, of which 7"):
        EmbeddingScope(trained_layers=7)


def test_trained_layers_are_restored_from_a_checkpoint():
    first, second = EmbeddingScope(trained_layers=1), EmbeddingScope(trained_layers=1)
    with torch.no_grad():
        for parameter in first.trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert not torch.allclose(first.eval().embed(["a text"]), second.eval().embed(["a text"]), atol=1e-3)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first.embed(["a text"]), second.embed(["a text"]))


def test_cross_attention_scores_every_pair_independently(bert_folder):
    classifier = CrossAttentionScope(str(bert_folder), pairs_per_batch=2).eval()
    prompts, remembered = ["rome is", "the capital", "france"], ["the capital of france is", "rome"]
    with torch.no_grad():
        together = classifier.log_similarity(prompts, classifier.remember(remembered))
        for row, prompt in enumerate(prompts):
            for column, text in enumerate(remembered):
                alone = classifier.log_similarity([prompt], classifier.remember([text]))
                torch.testing.assert_close(together[row, column], alone[0, 0], rtol=1e-4, atol=1e-5)
    assert bool((together < 0).all())


def test_serac_with_cross_attention_edits_and_is_loaded_from_a_file(model, bert_folder, tmp_path):
    editor = SERAC(rank=2, adapted_layers=1, cross_attention=str(bert_folder), threshold=0.0)
    editor.setup(model)
    edit = editor.eval().edit(model, REQUESTS)
    with edit.applied(model) as edited:
        expected = target_log_probs(edited, REQUESTS)
    with load_edit(edit.save(tmp_path / "edit")).applied(model) as edited:
        assert target_log_probs(edited, REQUESTS) == pytest.approx(expected, abs=1e-5)


def test_a_memory_with_cross_attention_takes_longer_prompts(model, bert_folder):
    editor = SERAC(rank=2, adapted_layers=1, cross_attention=str(bert_folder), threshold=0.0)
    editor.setup(model)
    requests = [EditRequest("rome is", "x"), EditRequest("the capital of france is", "y"), EditRequest("the", "z")]
    edit = editor.eval().edit(model, requests[:1])
    for request in requests[1:]:
        edit = edit.joined(editor.edit(model, [request]))
    together = editor.edit(model, requests)
    assert torch.equal(edit.memory.tensors["keys"], together.memory.tensors["keys"])
    prompts = ["the capital", "rome"]
    with edit.applied(model) as one, together.applied(model) as other:
        mine, theirs = one.routes(prompts), other.routes(prompts)
    assert [route.score for route in mine] == pytest.approx([route.score for route in theirs])


def test_a_separate_model_with_the_bases_tokens_is_compared_with_the_base(tmp_path):
    """The answering model is smaller and has its own head."""
    base = language_model("llama")
    small = FAMILIES["llama"][0]()
    small.hidden_size, small.intermediate_size = 16, 24
    build(small).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    editor = SERAC(counterfactual=str(tmp_path), threshold=0.3)
    editor.setup(base)
    assert editor.answering_model.same_tokens(base)
    request = REQUESTS[1]
    edit = editor.eval().edit(base, [request])
    [before] = base.score([request.prompt], [request.target], keep_head_input=True)
    with edit.applied(base) as edited:
        [score] = edited.score([request.prompt], [request.target], [before.head_input])
    other, full_prompt = load_language_model(str(tmp_path)), prepend_request(request, request.prompt)

    def log_probs(model, prompt):
        text = model.encoder.encode(prompt, request.target)
        with torch.no_grad():
            logits = model.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
        return logits[text.target[0] - 1 : text.target[1] - 1]

    p, q = log_probs(base, request.prompt), log_probs(other, full_prompt)
    assert score.divergence == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    [theirs] = other.score([full_prompt], [request.target])
    assert score.log_probs == pytest.approx(theirs.log_probs, rel=1e-4)


def test_sequences_of_memories_are_one_memory(model, editor, tmp_path):
    first, second = editor.edit(model, REQUESTS[:1]), editor.edit(model, REQUESTS[1:2])
    later = editor.edit(model, [replace(REQUESTS[0], target="Oslo")])
    saved = [load_edit(edit.save(tmp_path / str(index))) for index, edit in enumerate((first, second, later))]
    unnamed = editor.edit(model, [replace(REQUESTS[0], id="")])
    expected = editor.edit(model, [replace(REQUESTS[0], target="Oslo"), REQUESTS[1]])
    prompts, targets = [REQUESTS[0].prompt, REQUESTS[1].prompt], ["Oslo", REQUESTS[1].target]
    with expected.applied(model) as edited:
        expected_scores = edited.score(prompts, targets)
    for edits in ((first, second, later), saved):
        with EditSequence(edits).applied(model) as edited:
            scores = edited.score(prompts, targets)
            assert [route.request.target for route in edited.routes(prompts)] == ["Oslo", REQUESTS[1].target]
        for score, same in zip(scores, expected_scores, strict=True):
            assert score.log_probs == pytest.approx(same.log_probs, abs=1e-4)
    assert editor.could_have_produced(saved[0].provenance, REQUESTS[:1])
    assert editor.could_have_produced(
        load_edit(unnamed.save(tmp_path / "unnamed")).provenance, [replace(REQUESTS[0], id="")]
    )
    assert len(EditSequence(saved).layers) == 1


def test_memories_of_other_weights_are_layers_and_the_later_one_routes_first(model, editor, tmp_path):
    first = editor.edit(model, REQUESTS[:2])
    second = load_edit(editor.edit(model, [replace(REQUESTS[0], target="Oslo")]).save(tmp_path / "edit"))
    with torch.no_grad():
        second.router.classifier.log_scale.add_(1.0)
    sequence = EditSequence([first, second])
    assert len(sequence.layers) == 2
    prompts, targets = [REQUESTS[0].prompt, REQUESTS[1].prompt, "Water boils at"], ["Oslo", REQUESTS[1].target, "noon"]
    with sequence.applied(model) as edited:
        scores, texts = edited.score(prompts, targets), edited.generate(prompts, 3)
    with second.applied(model) as edited:
        assert scores[0].log_probs == edited.score(prompts[:1], targets[:1])[0].log_probs
    with first.applied(model) as edited:
        assert scores[1].log_probs == edited.score(prompts[1:2], targets[1:2])[0].log_probs
    assert texts[2] == model.generate(prompts[2:], 3)[0]


def test_the_hugging_face_model_cannot_be_asked_past_a_routed_edit(model, editor):
    ids = torch.tensor([[5, 6, 7]])
    expected = model.model(input_ids=ids).logits
    with editor.edit(model, REQUESTS).applied(model) as edited:
        edited.generate([REQUESTS[0].prompt, "Water boils at"], 2)
        with pytest.raises(EditError, match="a routed edit is applied"):
            model.model.generate(input_ids=ids, max_new_tokens=2)
        with pytest.raises(EditError, match="a routed edit is applied"):
            model.model(input_ids=ids)
    assert torch.equal(model.model(input_ids=ids).logits, expected)


def test_a_separate_model_with_another_tokenizer_answers_through_text(tmp_path, tiny_folder):
    base = language_model("gpt2", tokenizer="sentencepiece")
    editor = SERAC(counterfactual=str(tiny_folder), threshold=0.3)
    editor.setup(base)
    editor.eval()
    other = load_language_model(str(tiny_folder))
    assert not editor.answering_model.same_tokens(base)
    request = REQUESTS[1]
    edit = editor.edit(base, [request])
    full_prompt = prepend_request(request, request.prompt)
    with edit.applied(base) as edited:
        [score] = edited.score([request.prompt], [request.target])
        [text] = edited.generate([request.prompt], 6)
    expected = base.encoder.encode(request.prompt, request.target)
    assert score.target_ids == expected.target_ids
    assert len(score.predicted_ids) == len(score.target_ids)
    [theirs] = other.score([full_prompt], [request.target])
    assert sum(score.log_probs) == pytest.approx(sum(theirs.log_probs), rel=1e-4)
    assert text == other.generate([full_prompt], 6)[0]


def test_a_perfect_prediction_stays_perfect_in_the_other_tokenizer():
    from lightning_edit.models import Score

    base, other = language_model("gpt2", tokenizer="sentencepiece"), language_model("llama")
    prompt, target = "The capital of France is", "Rome the city"
    ids = other.encoder.encode(prompt, target).target_ids
    translated = translated_score(Score(ids, ids, (-0.5,) * len(ids)), other, base, prompt, target)
    assert translated.predicted_ids == translated.target_ids == base.encoder.encode(prompt, target).target_ids


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(EditorNotFittedError, match=r"setup\(model\)"):
        SERAC().edit(language_model("llama"), REQUESTS[:1])
    with pytest.raises(SourceNotFoundError, match="all-minilm-l6-v2"):
        EmbeddingScope(str(tmp_path / "none"))
    with pytest.raises(SourceNotFoundError, match="pass a local folder"):
        CrossAttentionScope(str(tmp_path / "none"))


def test_the_trunk_below_the_adapter_gives_the_same_logits(model, editor):
    counterfactual = editor.answering_model
    batch = model.encoder.collate([model.encoder.encode(request.prompt, request.target) for request in REQUESTS])
    trunk = Trunk(model, counterfactual.lowest_layer)
    with counterfactual.answering(model) as other:
        torch.testing.assert_close(trunk.answer_logits(batch), other.answer_logits(batch), rtol=1e-4, atol=1e-5)
    assert trunk.works


def test_bfloat16_base_keeps_a_float32_adapter():
    editor = SERAC(rank=2, adapted_layers=1)
    editor.setup(language_model("llama", torch.bfloat16))
    assert {parameter.dtype for parameter in editor.parameters()} == {torch.float32}


def test_the_target_becomes_more_likely(model, editor):
    before = log_prob(model, REQUESTS[0])
    with editor.edit(model, REQUESTS[:1]).applied(model) as edited:
        assert log_prob(edited, REQUESTS[0]) > before


def test_cross_attention_reads_the_end_of_a_prompt_beyond_its_positions(model, bert_folder, monkeypatch):
    torch.manual_seed(0)
    editor = SERAC(cross_attention=str(bert_folder), rank=4, adapted_layers=2)
    editor.setup(model)
    editor.eval()
    edit = editor.edit(model, REQUESTS[:1])
    scope, read = editor.scope_classifier, []
    forward = scope.classifier.forward
    monkeypatch.setattr(
        scope.classifier, "forward", lambda **inputs: read.append(inputs["input_ids"]) or forward(**inputs)
    )
    end = "the capital of france is rome"
    with edit.applied(model) as edited, pytest.warns(UserWarning, match="fills or exceeds the 512 tokens"):
        [route] = edited.routes(["the " * 600 + end])
    assert 0 < route.score < 1
    [ids] = read
    assert ids.shape == (1, 512)
    words = scope.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert words[-7:] == [*end.split(), "[SEP]"]
    memory = scope.remember(["the " * 600 + end])
    with pytest.warns(UserWarning, match="fills or exceeds the 512 tokens"):
        assert scope.log_similarity(["rome is"], memory).shape == (1, 1)
    words = scope.tokenizer.convert_ids_to_tokens(read[-1][0].tolist())
    assert words[-10:] == [*end.split(), "[SEP]", "rome", "is", "[SEP]"]
