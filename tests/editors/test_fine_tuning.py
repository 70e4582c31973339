"""Fine-tuning against plain loops over a copy of the model, and the shared behaviour of editors that tune."""

import copy

import pytest
import torch

from lightning_edit.editors import AdaLoRA, Budget, FineTuning, LoRA, TuningSettings, fine_tuning, lora
from lightning_edit.editors.tuning import mini_batches
from lightning_edit.errors import ConfigurationError, EditError, LayerMapError
from lightning_edit.records import EditRequest
from lightning_edit.tokenization import EncodedText
from tests.testers import REQUESTS, EditorTester
from tests.tiny_models import language_model

STEPS = TuningSettings(steps=8, learning_rate=5e-3)


class TestFTM(EditorTester):
    def make(self, model):
        return FineTuning(sites=[-2], tuning=STEPS)


class TestFTL(EditorTester):
    def make(self, model):
        tuning = TuningSettings(steps=8, learning_rate=2e-2, scored="prompt_last")
        return FineTuning(sites=[-2], norm_constraint=0.1, tuning=tuning)


class TestLocFTBF(EditorTester):
    def make(self, model):
        tuning = TuningSettings(steps=8, learning_rate=5e-3, batch_size=2, shuffle=True, end_token=True)
        return FineTuning(sites=[-2], tuning=tuning)


class TestLoRA(EditorTester):
    def make(self, model):
        targets = {"gpt2": ("c_attn",)}.get(model.model.config.model_type, ("q_proj", "v_proj"))
        return LoRA(targets, rank=2, alpha=8, tuning=TuningSettings(steps=8, learning_rate=2e-2, skip_below=0))


class TestAdaLoRA(EditorTester):
    def make(self, model):
        targets = {"gpt2": ("c_attn",)}.get(model.model.config.model_type, ("q_proj", "v_proj"))
        tuning = TuningSettings(steps=12, learning_rate=5e-2, skip_below=0, stop_below=0)
        return AdaLoRA(targets, budget=Budget(4, 2), alpha=32, tuning=tuning)


def plain_loop(model, requests, site, tuning, bound=None):
    """Fine-tunes a copy of the whole model, one request after another in each batch, with autograd and torch's Adam."""
    copied = copy.deepcopy(model.model).double()
    weight = copied.get_submodule(site).weight.requires_grad_(True)
    before = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=tuning.learning_rate)
    for _ in range(tuning.steps):
        losses = []
        for request in requests:
            text = model.encoder.encode(request.prompt, request.target)
            prompt, labels = list(text.ids[: text.target[0]]), list(text.target_ids)
            if tuning.scored == "prompt_last":
                log_probs = copied(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
                losses.append(-log_probs[labels].mean())
                continue
            labels += [model.tokenizer.eos_token_id] if tuning.end_token else []
            logits = copied(torch.tensor([prompt + labels])).logits[0].log_softmax(-1)
            places = torch.arange(len(labels)) + len(prompt) - 1
            losses.append(-logits[places, torch.tensor(labels)].mean())
        loss = torch.stack(losses).mean()
        loss_value = float(loss.detach())
        if loss_value >= tuning.skip_below:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if bound is not None:
            with torch.no_grad():
                weight.copy_(before + (weight - before).clamp(-bound, bound))
        if loss_value < tuning.stop_below:
            break
    return (weight - before).detach().T


@pytest.mark.parametrize(
    ("tuning", "bound"),
    [
        (TuningSettings(steps=6, learning_rate=1e-2), None),
        (TuningSettings(steps=6, learning_rate=1e-2, scored="prompt_last"), 2e-2),
        (TuningSettings(steps=6, learning_rate=1e-2, end_token=True), None),
        (TuningSettings(steps=40, learning_rate=5e-2, stop_below=0.5), None),
    ],
    ids=["ft-m", "ft-l", "end-token", "early-stop"],
)
def test_the_change_equals_that_of_a_plain_loop(tuning, bound):
    model = language_model("llama", torch.float64)
    editor = FineTuning(sites=[1], norm_constraint=bound, tuning=tuning)
    site = model.layer_map.site(1).name
    edit = editor.edit(model, REQUESTS)
    expected = plain_loop(model, REQUESTS, site, tuning, bound)
    torch.testing.assert_close(edit.deltas[site].dense().double(), expected, rtol=2e-3, atol=2e-5)
    # Edits computed side by side equal those computed alone.
    batch = editor.edit_each(model, REQUESTS)
    for index, request in enumerate(REQUESTS):
        expected = plain_loop(model, [request], site, tuning, bound)
        torch.testing.assert_close(batch[index].deltas[site].dense().double(), expected, rtol=2e-3, atol=2e-5)


def test_the_norm_constraint_holds_elementwise():
    model = language_model("llama")
    editor = FineTuning(sites=[1], norm_constraint=1e-3, tuning=TuningSettings(steps=5, learning_rate=1e-2))
    delta = editor.edit(model, REQUESTS[:1]).deltas[model.layer_map.site(1).name].dense()
    assert float(delta.abs().max()) == pytest.approx(1e-3)


def test_mini_batches_see_every_request_once_a_pass():
    settings = TuningSettings(steps=3, batch_size=2, shuffle=True)
    texts = [EncodedText((number,), (0, 1)) for number in range(5)]
    steps = list(mini_batches(range(5), texts, settings))
    assert [len(step.rows) for step in steps] == [2, 2, 1] * 3
    for epoch in (1, 2, 3):
        epoch_steps = [step for step in steps if step.epoch == epoch]
        assert sorted(row for step in epoch_steps for row in step.rows) == list(range(5))
        assert [step.ends_pass for step in epoch_steps] == [False, False, True]
    assert len({tuple(row for step in steps if step.epoch == epoch for row in step.rows) for epoch in (1, 2, 3)}) > 1
    moved = list(mini_batches(range(10, 15), texts, settings))
    assert [[row - 10 for row in step.rows] for step in moved] == [step.rows for step in steps]


def test_a_loss_that_is_not_finite_leaves_the_request_out(monkeypatch):
    from lightning_edit.editors import tuning

    model, token_losses = language_model("llama"), tuning.token_losses
    germany = model.encoder.encode(REQUESTS[1].prompt, REQUESTS[1].target).target_ids

    def broken(model, read, ids):
        losses = token_losses(model, read, ids)
        return losses + torch.zeros_like(losses).masked_fill(torch.isin(ids, torch.tensor(germany)), float("nan"))

    monkeypatch.setattr(tuning, "token_losses", broken)
    editor = FineTuning(sites=[1], tuning=STEPS)
    with pytest.warns(UserWarning, match="1 of 2 requests are left out: the loss of 'germany' became nan in pass 1"):
        batch = editor.edit_each(model, [REQUESTS[1], EditRequest("Answer:", "so", id="so")])
    assert [len(provenance.failed) for provenance in batch.provenances] == [1, 0]
    norms = [float(next(iter(batch[index].deltas.values())).dense().norm()) for index in range(2)]
    assert norms[0] == 0 < norms[1]
    with (
        pytest.warns(UserWarning, match="1 of 1"),
        pytest.raises(EditError, match="could not be made: the loss of 'germany'"),
    ):
        editor.edit(model, [REQUESTS[1]])


def test_dense_edits_are_made_in_parts_that_fit_into_memory():
    model = language_model("llama")
    editor = FineTuning(sites=[1], tuning=STEPS)
    groups = [[request] for request in REQUESTS]
    size = editor.bytes_per_edit(model, groups)
    assert size == 5 * 4 * 48 * 32
    parts = list(editor.edit_in_parts(model, groups, memory=2 * size))
    assert [(part.start, len(edits)) for part, edits in parts] == [(0, 2), (2, 1)]
    assert [len(edits) for _, edits in editor.edit_in_parts(model, groups, memory=1)] == [1, 1, 1]


def peft_adapter(model, editor, config, penalty=False):
    """Trains peft's adapter from the editor's initial values, and returns ΔW of every site."""
    from peft import get_peft_model

    config.task_type = "CAUSAL_LM"  # peft adds the orthogonality penalty only for this type
    copied = get_peft_model(copy.deepcopy(model.model).double(), config)
    sites = editor.edit_sites(model)
    adapters = editor.adapters(sites, 1)
    per_site = len(adapters.parameters[0]) // len(sites)
    layers = {site.name: copied.base_model.model.get_submodule(site.name) for site in sites}
    with torch.no_grad():
        for index, layer in enumerate(layers.values()):
            initial = adapters.parameters[0][per_site * index : per_site * (index + 1)]
            parts = (
                [layer.lora_A["default"], layer.lora_E["default"], layer.lora_B["default"]]
                if per_site == 3
                else [
                    layer.lora_A["default"].weight,
                    layer.lora_B["default"].weight,
                ]
            )
            for part, value in zip(parts, initial, strict=True):
                part.copy_(value.T if value.shape != part.shape or value.shape[0] != part.shape[0] else value)
    text = model.encoder.encode(REQUESTS[0].prompt, REQUESTS[0].target)
    ids = torch.tensor([text.ids])
    labels = ids.clone()
    labels[:, : text.target[0]] = -100
    optimizer = torch.optim.Adam([p for p in copied.parameters() if p.requires_grad], lr=editor.tuning.learning_rate)
    copied.eval()
    for step in range(1, editor.tuning.steps + 1):
        loss = copied(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        if penalty:
            copied.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return {name: layer.get_delta_weight("default").T.detach() for name, layer in layers.items()}


def test_lora_equals_pefts_lora():
    from peft import LoraConfig

    model = language_model("llama", torch.float64)
    tuning = TuningSettings(steps=6, learning_rate=1e-2, skip_below=0)
    editor = LoRA(["q_proj", "v_proj"], rank=3, alpha=12, tuning=tuning)
    edit = editor.edit(model, REQUESTS[:1])
    expected = peft_adapter(
        model, editor, LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    )
    assert edit.deltas.keys() == expected.keys()
    for name, delta in edit.deltas.items():
        torch.testing.assert_close(delta.dense().double(), expected[name], rtol=1e-3, atol=1e-6)


@pytest.fixture
def double_precision():
    """Adam divides by the gradient's size, which enlarges float32's rounding where a gradient is nearly zero."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_adalora_equals_pefts_adalora_with_its_budget(double_precision):
    from peft import AdaLoraConfig

    model = language_model("llama", torch.float64)
    tuning = TuningSettings(steps=10, learning_rate=1e-2, skip_below=0, stop_below=0)
    editor = AdaLoRA(["q_proj", "v_proj"], budget=Budget(4, 2), alpha=16, tuning=tuning)
    edit = editor.edit(model, REQUESTS[:1])
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, total_step=10,
        tinit=0, tfinal=0, deltaT=1, orth_reg_weight=0.5,
    )  # fmt: skip
    expected = peft_adapter(model, editor, config, penalty=True)
    ranks = []
    for name, delta in edit.deltas.items():
        torch.testing.assert_close(delta.dense(), expected[name], rtol=1e-5, atol=1e-8)
        ranks.append(int((delta.b.norm(dim=1) > 0).sum()))
    assert sum(ranks) == 2 * len(ranks), "the budget is met"


def test_the_budget_falls_from_the_first_to_the_last_value():
    budget = Budget(12, 8, warmup=2, final=3)
    left = [budget.values_left(step, 20, 4) for step in range(1, 21)]
    assert left[:2] == [48, 48]
    assert left[16:] == [32] * 4
    assert left == sorted(left, reverse=True)


def test_dropout_changes_the_training_and_does_not_depend_on_neighbours():
    model = language_model("llama")
    tuning = TuningSettings(steps=4, learning_rate=1e-2, skip_below=0)
    editor, without = LoRA(dropout=0.3, tuning=tuning), LoRA(tuning=tuning)
    requests = [EditRequest("Japan", "Rome", id="short"), *REQUESTS]
    together = editor.edit_each(model, requests)
    for number, request in enumerate(requests):
        for name, delta in editor.edit(model, [request]).deltas.items():
            # Adam enlarges differences of rounding; with other masks the difference would be as large as the change.
            difference = together[number].deltas[name].dense() - delta.dense()
            assert float(difference.norm()) < 0.05 * float(delta.dense().norm())
    [name, *_], edits = together[0].deltas, [one.edit(model, requests[:1]) for one in (editor, without)]
    assert float((edits[0].deltas[name].dense() - edits[1].deltas[name].dense()).norm()) > 1e-3


@pytest.mark.parametrize("editor", [FineTuning(sites=[1], tuning=STEPS), LoRA(tuning=STEPS)])
def test_a_failed_edit_changes_nothing_even_if_its_parameters_are_not_finite(editor, monkeypatch):
    model = language_model("llama")

    def failing(model, texts, names, tuned, *arguments):
        with torch.no_grad():
            for edit, parameters in enumerate(tuned.parameters):
                for parameter in parameters:
                    parameter.fill_(0.1 if edit else float("nan"))
        return {0: f"the loss of {names[0]!r} became nan"}

    for module in (fine_tuning, lora):
        monkeypatch.setattr(module, "tune", failing)
    with pytest.warns(UserWarning, match="1 of 2 requests are left out: the loss of .* became nan"):
        batch = editor.edit_each(model, REQUESTS[:2])
    for delta in batch[0].deltas.values():
        assert not bool(delta.dense().any())
    for delta in batch[1].deltas.values():
        assert bool(delta.dense().all())


def test_an_update_that_is_not_finite_after_the_last_step_is_reported(monkeypatch):
    """The loss is measured before a step, so that the last step's result is only seen in the change itself."""
    model = language_model("llama")
    editor = FineTuning(sites=[1], tuning=TuningSettings(steps=1, learning_rate=1e-2, skip_below=0))
    after_step = fine_tuning._Matrices.after_step

    def broken(self, edit, epoch):
        after_step(self, edit, epoch)
        if edit == 1:
            self.parameters[edit][0].data[0, 0] = float("inf")

    monkeypatch.setattr(fine_tuning._Matrices, "after_step", broken)
    with pytest.warns(UserWarning, match="1 of 3 requests are left out: the update of .* is not finite"):
        batch = editor.edit_each(model, REQUESTS[:3])
    assert [len(provenance.failed) for provenance in batch.provenances] == [0, 1, 0]
    assert batch.provenances[1].failed_requests == (REQUESTS[1],)
    sizes = [float(next(iter(batch[number].deltas.values())).dense().norm()) for number in range(3)]
    assert sizes[1] == 0
    assert min(sizes[0], sizes[2]) > 0


def test_settings_are_checked():
    model = language_model("llama")
    for settings in ({"rank": 0}, {"dropout": 1.0}, {"alpha": 0}, {"layers": []}):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            LoRA(**settings)
    with pytest.raises(LayerMapError, match="ends in 'qkv'"):
        LoRA(["qkv"]).edit(model, REQUESTS[:1])
    with pytest.raises(ConfigurationError, match="initial_rank"):
        Budget(2, 2)
    with pytest.raises(ConfigurationError, match="norm_constraint"):
        FineTuning(norm_constraint=0)
