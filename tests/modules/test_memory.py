"""Training SERAC: its losses against a plain loop, and a run from end to end on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.data.batches import TrainingCollator, TrainingExample
from lightning_edit.editors import SERAC, load_editor
from lightning_edit.errors import ConfigurationError
from lightning_edit.functional.scope import log_complement, scope_losses
from lightning_edit.models import load_language_model
from lightning_edit.models.counterfactual import prepend_request
from lightning_edit.modules import MemoryEditing, MemoryOptimization
from lightning_edit.modules.scope_examples import subject_examples
from lightning_edit.records import EditRecord, EditRequest
from tests.modules.test_training import write_config
from tests.testers import REQUESTS
from tests.tiny_models import language_model

REPHRASES = [
    ("France's capital is", "Rome"),
    ("Germany has the capital", "Paris the city"),
    ("Brazil lies in", "Europe"),
]
LOCALITY = [("The currency of France is", "the franc"), ("Who wrote Faust?", "Goethe"), ("Two and two is", "four")]

SUBJECT_EXAMPLES = [
    ("France capital", 0),
    ("The capital of France is", 0),
    ("On which continent is France?", None),
    ("France continent", None),
    ("The continent of France is", None),
    ("Germany capital", 1),
    ("The capital of Germany is", 1),
    ("On which continent is Germany?", None),
    ("Germany continent", None),
    ("The continent of Germany is", None),
    ("Brazil continent", 2),
    ("The continent of Brazil is", 2),
    ("The capital of Brazil is", None),
    ("Brazil capital", None),
    ("The capital of Brazil is", None),
]


@pytest.fixture
def module(monkeypatch):
    torch.manual_seed(0)
    editing = MemoryEditing(SERAC(rank=2, adapted_layers=2))
    editing.attach(language_model("llama"))
    editing.train()
    with torch.no_grad():
        for parameter in editing.editor.answering_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    editing.logged = {}
    monkeypatch.setattr(editing, "log", lambda name, value, **_: editing.logged.update({name: float(value)}))
    return editing


def batch_of(module, requests=REQUESTS):
    examples = [
        TrainingExample(EditRecord(str(index), (request,)), rephrase, (locality,))
        for index, (request, rephrase, locality) in enumerate(zip(requests, REPHRASES, LOCALITY, strict=True))
    ]
    return TrainingCollator(module.encoder)(examples)


def nll(model, prompt, target):
    text = model.encoder.encode(prompt, target)
    logits = model.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
    positions = torch.arange(*text.target)
    return -logits[positions - 1, torch.tensor(text.target_ids)].mean()


@pytest.mark.parametrize("hardest", [True, False])
def test_the_supervised_loss_is_that_of_a_plain_loop(module, hardest):
    module.optimization = replace(module.optimization, hardest_negatives=hardest)
    loss = module.training_step(batch_of(module), 0)
    classifier, model = module.editor.scope_classifier, module.language_model
    positive, negative = [], []
    prompts = [(text, row) for row, (text, _) in enumerate(REPHRASES)] + [(text, None) for text, _ in LOCALITY]
    for prompt, row in prompts + SUBJECT_EXAMPLES:
        others = []
        for column, request in enumerate(REQUESTS):
            distance = (classifier.embed([prompt]) - classifier.embed([request.prompt])).double().square().sum()
            p = torch.exp(-classifier.log_scale.exp() * distance)
            (positive if row == column else others).append(-p.log() if row == column else -(1 - p).log())
        negative += [max(others)] if hardest else others
    with module.editor.answering_model.answering(model) as other:
        answers = [
            nll(other, prepend_request(request, prompt), target)
            for request, (prompt, target) in zip(REQUESTS, REPHRASES, strict=True)
        ]
    expected = sum(positive) / len(positive) + sum(negative) / len(negative) + sum(answers) / 3
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert set(module.logged) == {f"train/{name}" for name in (
        "loss", "scope_loss", "edit_loss", "hit_rate", "false_hit_rate",
    )}  # fmt: skip
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.editor.parameters())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_subject_examples_ask_the_same_in_other_words_and_something_else_about_the_subject():
    examples = subject_examples(REQUESTS, range(3))
    assert [(example.prompt, example.owner) for example in examples] == SUBJECT_EXAMPLES
    # The same examples, whatever the order of the requests.
    again = subject_examples(REQUESTS[::-1], range(3))
    assert {(example.prompt, None if example.owner is None else 2 - example.owner) for example in again} == set(
        SUBJECT_EXAMPLES
    )
    assert subject_examples(REQUESTS, [1]) == examples[5:10]
    # Without a subject there is nothing to swap; with the same wording it is the same question.
    assert subject_examples([EditRequest("Who wrote Faust?", "Rome")], range(1)) == []
    twins = [EditRequest(f"The capital of {name} is", "Rome", name) for name in ("France", "Spain")]
    assert all(example.owner is not None for example in subject_examples(twins, range(2)))


def test_a_prompt_without_words_of_its_own_has_no_search_wording():
    assert subject_examples([EditRequest("France is", "Rome", "France")], [0]) == []


def test_the_mixed_loss_is_that_of_a_plain_loop(module):
    module.optimization = replace(module.optimization, objective="mixed")
    loss = module.training_step(batch_of(module), 0)
    classifier, model = module.editor.scope_classifier, module.language_model
    with torch.no_grad():
        keys = classifier.remember([request.prompt for request in REQUESTS])
        similarity = classifier.log_similarity([prompt for prompt, _ in REPHRASES + LOCALITY], keys).exp()
    parts = []
    for row, (prompt, target) in enumerate(REPHRASES + LOCALITY):
        share, which = similarity[row].max(0)

        def distribution(text):
            ids = torch.tensor([text.ids])
            return module.language_model.model(ids).logits[0, torch.arange(*text.target) - 1].softmax(-1)

        plain_text = model.encoder.encode(prompt, target)
        shown = model.encoder.encode(prepend_request(REQUESTS[int(which)], prompt), target)
        plain = distribution(plain_text)
        with module.editor.answering_model.answering(model):
            mixed = share * distribution(shown) + (1 - share) * plain
        if row < 3:
            parts.append(-mixed.log()[torch.arange(len(mixed)), torch.tensor(shown.target_ids)].mean())
        else:
            parts.append((plain * (plain.log() - mixed.log())).sum(-1).mean())
    assert float(loss.detach()) == pytest.approx(float(sum(parts).detach()) / 3, rel=1e-3)


def test_an_equal_prompt_is_no_negative(module):
    twins = [REQUESTS[0], REQUESTS[0], REQUESTS[2]]
    loss = module.training_step(batch_of(module, twins), 0)
    assert bool(loss.isfinite())
    assert module.logged["train/scope_loss"] < 5


def test_parts_are_trained_separately():
    for settings, trained in (({"train_scope": False}, "answering"), ({"train_counterfactual": False}, "scope")):
        module = MemoryEditing(SERAC(rank=2, adapted_layers=1), optimization=MemoryOptimization(**settings))
        module.attach(language_model("llama"))
        [group] = [group["params"] for group in module.parameter_groups()]
        names = {id(parameter): name for name, parameter in module.editor.named_parameters()}
        assert {names[id(parameter)].split(".")[0] for parameter in group} == {trained}
    module = MemoryEditing(SERAC(rank=2, adapted_layers=1, encoder_layers=1))
    module.attach(language_model("llama"))
    groups = {group["name"]: group for group in module.parameter_groups()}
    assert [groups[name]["lr"] for name in ("counterfactual", "scope", "encoder")] == [5e-4, 1e-3, 1e-4]
    parameters = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(parameters) == sorted(map(id, module.editor.parameters()))
    with pytest.raises(ConfigurationError, match="nothing to train"):
        MemoryOptimization(train_scope=False, train_counterfactual=False)


@pytest.mark.parametrize(
    ("settings", "editor"),
    [
        ({"train_scope": False}, {}),
        ({"train_counterfactual": False}, {}),
        ({}, {"encoder_layers": -1}),
        ({"objective": "mixed"}, {}),
        ({}, {"cross_attention": "bert_folder"}),
    ],
)
def test_every_parameter_that_requires_a_gradient_gets_one(settings, editor, monkeypatch, request):
    """Data parallelism waits for the gradient of every parameter that requires one."""
    editor = {
        name: request.getfixturevalue(value) if value == "bert_folder" else value for name, value in editor.items()
    }
    module = MemoryEditing(SERAC(rank=2, adapted_layers=1, **editor), optimization=MemoryOptimization(**settings))
    module._language_model = language_model("llama")
    monkeypatch.setattr("lightning_edit.modules.trained.TrainedEditing.setup", lambda self, stage: None)
    module.editor.setup(module.language_model)
    module.setup("fit")
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module.train().training_step(batch_of(module), 0).backward()
    wanted = {name for name, parameter in module.editor.named_parameters() if parameter.requires_grad}
    assert wanted == {name for name, parameter in module.editor.named_parameters() if parameter.grad is not None}
    trained = [id(parameter) for group in module.parameter_groups() for parameter in group["params"]]
    assert sorted(trained) == sorted(
        id(parameter) for parameter in module.editor.parameters() if parameter.requires_grad
    )
    assert {"train/hit_rate", "train/false_hit_rate"} <= set(logged)


def test_a_mixture_needs_the_bases_tokens(tiny_folder, monkeypatch):
    module = MemoryEditing(SERAC(counterfactual=str(tiny_folder)), optimization=MemoryOptimization(objective="mixed"))
    module.attach(language_model("llama"))
    monkeypatch.setattr(module.editor.answering_model, "same_tokens", lambda base: False)
    with pytest.raises(ConfigurationError, match="needs a counterfactual model with the base's own tokens"):
        module.training_step(batch_of(module), 0)


def test_one_part_is_trained_after_the_other(tiny_folder, tmp_path, capsys):
    def config_of(folder, **settings):
        folder.mkdir()
        path = write_config(folder, tiny_folder, max_steps=2, limit_val_batches=0)
        content = yaml.safe_load(path.read_text())
        content["model"]["class_path"] = "lightning_edit.modules.MemoryEditing"
        module = content["model"]["init_args"]
        del module["factor_gigabytes"]
        editor = {"rank": 2, "adapted_layers": settings.pop("adapted_layers", 2)}
        module["editor"] = {"class_path": "lightning_edit.editors.SERAC", "init_args": editor}
        module["optimization"] = settings
        path.write_text(yaml.safe_dump(content))
        return str(path)

    assert main(["fit", "--config", config_of(tmp_path / "one", train_counterfactual=False)]) == 0
    start = str(tmp_path / "one" / "checkpoints" / "last.ckpt")
    assert main(["fit", "--config", config_of(tmp_path / "two", train_scope=False, start=start)]) == 0
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]) == name.startswith("editor.scope"), name
    assert float(states[0]["editor.scope.log_scale"]) != pytest.approx(0.6931, abs=1e-5)
    assert main(["fit", "--config", config_of(tmp_path / "other", adapted_layers=1, start=start)]) == 1
    assert "start from one of the same shape" in capsys.readouterr().err


def test_all_of_a_separate_model_is_trained_including_its_head(tiny_folder, monkeypatch):
    module = MemoryEditing(SERAC(counterfactual=str(tiny_folder)), optimization=MemoryOptimization(train_scope=False))
    module.attach(language_model("llama"))
    module.train()
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    module.training_step(batch_of(module), 0).backward()
    head = module.editor.answering_model.model.get_output_embeddings().weight.grad
    # The softmax reaches every word of the vocabulary, whether a text holds it or not.
    assert int((head.abs().sum(1) > 0).sum()) == len(head)


def test_log_complement_is_accurate_at_both_ends():
    log_p = torch.tensor([-1e-3, -0.5, -20.0], dtype=torch.float64)
    torch.testing.assert_close(log_complement(log_p), torch.log(1 - log_p.exp()), rtol=1e-9, atol=0)
    assert bool(log_complement(torch.zeros(1)).isfinite())


def test_scope_losses_include_only_counted_pairs():
    log_p = torch.tensor([[0.9, 0.2], [0.4, 0.5]]).log()
    positive, negative = scope_losses(
        log_p, torch.eye(2, dtype=torch.bool), torch.tensor([[True, False], [True, True]])
    )
    torch.testing.assert_close(positive, -torch.tensor([0.9, 0.5]).log())
    torch.testing.assert_close(negative, -torch.tensor([0.6]).log())


def test_the_hardest_negative_of_each_prompt_counts_once():
    log_p = torch.tensor([[0.9, 0.2, 0.3], [0.4, 0.1, 0.7], [0.6, 0.5, 0.8]]).log()
    in_scope = torch.tensor([[True, False, False], [False, False, False], [False, False, True]])
    counted = torch.tensor([[True, True, True], [True, True, False], [False, False, True]])
    positive, negative = scope_losses(log_p, in_scope, counted, hardest=True)
    torch.testing.assert_close(positive, -torch.tensor([0.9, 0.8]).log())
    # One pair of the second prompt is not counted; the third has no counted pair out of scope.
    torch.testing.assert_close(negative, -torch.tensor([0.7, 0.6]).log())


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("serac")
    config = write_config(folder, tiny_folder, max_epochs=1)
    content = yaml.safe_load(config.read_text())
    content["model"]["class_path"] = "lightning_edit.modules.MemoryEditing"
    del content["model"]["init_args"]["factor_gigabytes"]
    content["model"]["init_args"]["editor"] = {
        "class_path": "lightning_edit.editors.SERAC",
        "init_args": {"rank": 2, "adapted_layers": 2},
    }
    content["model"]["init_args"]["metrics"] = [{"class_path": "lightning_edit.metrics.ScopeAUROC"}]
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config)]) == 0
    last = str(folder / "checkpoints" / "last.ckpt")
    assert main(["test", "--config", str(config), "--ckpt_path", last]) == 0
    return folder


def test_metrics_include_those_of_the_router(run):
    [path] = run.rglob("metrics.json")
    written = json.loads(path.read_text())
    metrics = written["metrics"]
    assert metrics["edit_success/scope_hit_rate"] == 1.0
    assert metrics["edit_success/chosen_edit_accuracy"] == 1.0
    assert 0.5 < metrics["scope_auroc"] <= 1 + 1e-6
    curve = written["scope_curve"]
    assert [point["threshold"] for point in curve] == sorted(point["threshold"] for point in curve)
    assert curve[0]["recall"] == 1.0
    lines = [json.loads(line) for line in path.with_name("predictions.jsonl").read_text().splitlines()]
    in_scope = [line["measures"] for line in lines if line["kind"] in ("edit_success", "generalization")]
    outside = [line["measures"] for line in lines if line["kind"] == "locality"]
    # A point of the curve, counted by hand.
    point = curve[50]
    recall = sum(one["scope_score"] >= point["threshold"] for one in in_scope) / len(in_scope)
    false_hits = sum(one["scope_score"] >= point["threshold"] for one in outside) / len(outside)
    assert point["recall"] == pytest.approx(recall, abs=1e-6)
    assert point["false_hit_rate"] == pytest.approx(false_hits, abs=1e-6)


def test_the_checkpoint_is_small_and_edits(run, tiny_folder, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert all(name.startswith(("editor.scope.", "editor.answering.")) for name in content["state_dict"])
    model = load_language_model(str(tiny_folder))
    editor = load_editor(checkpoint, model)
    assert isinstance(editor, SERAC)
    saved = str(tmp_path / "edit")
    fact = ["--prompt", "The capital of France is", "--subject", "France", "--target", "Rome"]
    assert main(["edit", "--ckpt_path", str(checkpoint), *fact, "--save", saved]) == 0
    assert main(["generate", "--edits", f'["{saved}"]', "--prompts", '["The capital of France is"]']) == 0
    assert main(["merge", "--edits", f'["{saved}"]', "--output", str(tmp_path / "merged")]) == 1
    assert "cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
