"""Training a hypernetwork together with the scope of its edits."""

import json

import pytest
import torch
import yaml

from lightning_edit.cli import main
from lightning_edit.data.batches import TrainingCollator, TrainingExample
from lightning_edit.editors import MEND, Scoped, load_editor
from lightning_edit.functional.scope import log_complement
from lightning_edit.models import load_language_model
from lightning_edit.modules import HypernetworkEditing, ScopedEditing, ScopedOptimization
from lightning_edit.records import EditRecord
from tests.modules.test_training import write_config
from tests.testers import REQUESTS
from tests.tiny_models import language_model

REPHRASES = [
    ("France's capital is", "Rome"),
    ("Germany has the capital", "Paris the city"),
    ("Brazil lies in", "Europe"),
]
LOCALITY = [("The capital of Japan is", "Tokyo"), ("The currency of Germany is", "euro"), ("Two and two is", "four")]


def attached(kind, editor, **settings):
    torch.manual_seed(0)
    module = kind(editor, **settings)
    module.attach(language_model("llama"))
    module.train()
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: float(value)})
    return module


def batch_of(module):
    examples = [
        TrainingExample(EditRecord(str(index), (request,)), rephrase, (locality,))
        for index, (request, rephrase, locality) in enumerate(zip(REQUESTS, REPHRASES, LOCALITY, strict=True))
    ]
    return TrainingCollator(module.encoder)(examples)


def mend():
    return MEND(sites=[1, 2], rank=4)


def test_the_loss_is_that_of_mend_with_shares_and_that_of_the_scope():
    settings = ScopedOptimization(subject_examples=False, hardest_negatives=False, scope_weight=0.7)
    module = attached(ScopedEditing, Scoped(mend()), optimization=settings)
    with torch.no_grad():
        module.editor.scope_classifier.log_scale.fill_(1.0)
    plain = attached(HypernetworkEditing, mend())
    plain.editor.load_state_dict(module.hypernetwork.state_dict())
    loss = module.training_step(batch_of(module), 0)

    classifier = module.editor.scope_classifier
    with torch.no_grad():
        prompt_embeddings = classifier.embed([prompt for prompt, _ in REPHRASES + LOCALITY]).double()
        request_embeddings = classifier.embed([request.prompt for request in REQUESTS]).double()
        log_p = (
            -(torch.cdist(prompt_embeddings, request_embeddings) ** 2) * torch.tensor(1.0, dtype=torch.float64).exp()
        )
    shares = torch.stack([log_p[3 + row, row] for row in range(3)]).exp()
    assert bool(((shares > 0.01) & (shares < 0.99)).any())
    # Of three prompts, those that are hardly in scope are left out, and the mean is still over all.
    counted = shares >= 0.05
    outer = plain.outer_loss(batch_of(plain), shares * counted)
    assert 0 < int(counted.sum()) < 3
    inside = torch.cat([torch.eye(3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)])
    scope = -log_p[inside].mean() - log_complement(log_p[~inside]).mean()
    torch.testing.assert_close(float(loss.detach()), float(outer.detach()) + 0.7 * float(scope), rtol=1e-4, atol=1e-5)
    assert module.logged["train/scope_loss"] == pytest.approx(float(scope), rel=1e-4)

    loss.backward()
    outer.backward()
    for name, parameter in plain.editor.named_parameters():
        expected = parameter.grad
        actual = dict(module.hypernetwork.named_parameters())[name].grad
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6 * max(float(expected.abs().max()), 1e-6))
    assert float(classifier.projection.weight.grad.abs().max()) > 0
    trained = {id(parameter) for group in module.parameter_groups() for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in module.editor.parameters() if parameter.requires_grad}


def test_records_without_locality_prompts_can_be_trained_on():
    module = attached(ScopedEditing, Scoped(mend()))
    examples = [TrainingExample(EditRecord("0", (REQUESTS[0],)), REPHRASES[0], ())]
    assert bool(module.training_step(TrainingCollator(module.encoder)(examples), 0).isfinite())


def test_a_run_from_the_command_line(tmp_path, tiny_folder, capsys):
    config = write_config(tmp_path, tiny_folder, max_epochs=1)
    content = yaml.safe_load(config.read_text())
    content["model"]["class_path"] = "lightning_edit.modules.ScopedEditing"
    content["model"]["init_args"]["editor"] = {
        "class_path": "lightning_edit.editors.Scoped",
        "init_args": {
            "editor": {"class_path": "lightning_edit.editors.MEND", "init_args": {"sites": [1, 2], "rank": 4}},
            "threshold": 0.4,
        },
    }
    content["trainer"]["callbacks"] += [{"class_path": "lightning_edit.callbacks.RunArtifacts"}]
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config)]) == 0
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    assert main(["test", "--config", str(config), "--ckpt_path", last]) == 0
    [path] = tmp_path.rglob("metrics.json")
    assert json.loads(path.read_text())["metrics"]["edit_success/token_accuracy"] >= 0
    editor = load_editor(last, load_language_model(str(tiny_folder)))
    assert isinstance(editor, Scoped)
    assert editor.threshold == 0.4
    assert isinstance(editor.editor, MEND)
    fact = ["--prompt", "The capital of France is", "--subject", "France", "--target", "Rome"]
    saved = str(tmp_path / "edit")
    assert main(["edit", "--ckpt_path", last, *fact, "--save", saved]) == 0
    assert main(["generate", "--edits", f'["{saved}"]', "--prompts", '["The capital of France is"]']) == 0
    capsys.readouterr()
    assert main(["merge", "--edits", f'["{saved}"]', "--output", str(tmp_path / "merged")]) == 1
    assert "cannot be merged" in capsys.readouterr().err
