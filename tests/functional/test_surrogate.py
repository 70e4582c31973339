"""The training step's gradient against plain autograd through the edited forward pass, in float64."""

import pytest
import torch

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.editors import MALMEN, MEND, malmen
from lightning_edit.functional.surrogate import surrogate_loss
from lightning_edit.models import LanguageModel
from lightning_edit.models.capture import capture_factors
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.outer_losses import outer_gradients
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer

REQUESTS = [("The capital of France is", "Rome"), ("What is the capital of Germany? It is", "Paris the city")]
REPHRASES = [("Paris is no longer it:", "Rome"), ("Germany has the capital", "Paris the city")]
LOCALITY = [("The capital of Italy is", "Rome"), ("On which continent is Brazil?", "South America")]


def mend_change(editor, network, site, x, delta):
    """-α Σ_t x̃_t δ̃_tᵀ."""
    pseudo_x, pseudo_delta = network(x, delta, site)
    return -editor.step_sizes[editor_key(editor, site)] * pseudo_x.T @ pseudo_delta


def malmen_change(editor, network, site, x, delta):
    """(KᵀK + λI)⁻¹ KᵀD with autograd through torch.linalg.solve."""
    key = editor_key(editor, site)
    pseudo_x, pseudo_delta = network(x, delta, site)
    values = -editor.step_sizes[key] * (x * pseudo_x).sum(1, keepdim=True) * pseudo_delta
    ridge = editor.log_ridges[key].exp() * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.T @ x + ridge, x.T @ values)


class Site:
    """A network bound to one of its sites."""

    def __init__(self, network, site):
        self.network, self.site = network, site

    def __call__(self, x, delta, _):
        return self.network(x, delta, self.site)


def editor_key(editor, site):
    return list(editor.step_sizes)[int(site)]


def whitened(change):
    """Converts a change computed for z = W x into one for x (Wᵀ Δ), with an explicit W."""

    def of_whitened(editor, network, site, x, delta):
        whitening = list(editor.whitenings.values())[int(site)]
        matrix = whitening(torch.eye(x.shape[1], dtype=x.dtype)).T
        return matrix.T @ change(editor, network, site, x @ matrix.T, delta)

    return of_whitened


def fit_whitenings(editor):
    """Different from the identity, as after fitting on correlated keys."""
    for whitening in editor.whitenings.values():
        size = len(whitening.scale)
        keys = torch.randn(30, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64)
        whitening.fit(keys.T @ keys / len(keys))


def dual_only(monkeypatch):
    monkeypatch.setattr(malmen, "_Primal", None)


def primal_only(monkeypatch):
    monkeypatch.setattr(malmen, "_Dual", malmen._Primal)


CASES = {
    "mend": (lambda: MEND(sites=[1, 2], rank=6, step_size=1e-2), mend_change, None, 1e-9),
    "mend whitened": (
        lambda: MEND(sites=[1, 2], rank=6, step_size=1e-2, whitening=5),
        whitened(mend_change),
        None,
        1e-9,
    ),
    "malmen whitened": (
        lambda: MALMEN(sites=[1, 2], rank=6, step_size=1e-2, whitening=5),
        whitened(malmen_change),
        None,
        1e-8,
    ),
    "malmen primal whitened": (
        lambda: MALMEN(sites=[1, 2], rank=6, step_size=1e-2, whitening=5),
        whitened(malmen_change),
        primal_only,
        1e-8,
    ),
    "malmen dual": (
        lambda: MALMEN(sites=[1, 2], rank=6, step_size=1e-2, log_ridge=-1.0),
        malmen_change,
        dual_only,
        1e-8,
    ),
    "malmen primal": (
        lambda: MALMEN(sites=[1, 2], rank=6, step_size=1e-2, log_ridge=0.5),
        malmen_change,
        primal_only,
        1e-8,
    ),
    "malmen all tokens in chunks of 3, on disk": (
        lambda: MALMEN(sites=[1, 2], rank=6, step_size=1e-2, tokens="all", rows_per_chunk=3, factors_on_disk=True),
        malmen_change,
        None,
        1e-8,
    ),
    "malmen primal in chunks of 2": (
        lambda: MALMEN(sites=[1, 2], rank=6, step_size=1e-2, rows_per_chunk=2, shared=False),
        malmen_change,
        primal_only,
        1e-8,
    ),
}


SHARES = torch.tensor([0.25, 0.75], dtype=torch.float64)
"""Of the locality prompts."""


@pytest.mark.parametrize(("tokens_per_batch", "shares"), [(2048, None), (16, SHARES)])
@pytest.mark.parametrize("requests_per_edit", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_equals_autograd_through_the_edited_weights(
    case, family, requests_per_edit, tokens_per_batch, shares, monkeypatch
):
    make, change, patch, tolerance = CASES[case]
    if patch:
        patch(monkeypatch)
    model = LanguageModel(build(FAMILIES[family][0](), torch.float64), byte_level_tokenizer())
    model.tokens_per_batch = tokens_per_batch
    torch.manual_seed(1)
    editor = make()
    editor.setup(model)
    editor.double().train()
    fit_whitenings(editor)
    with torch.no_grad():
        for parameter in editor.networks.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = training_batch(model, requests_per_edit)

    trunk = Trunk(model, 1)
    store = editor.collect(model, batch.edit, batch.edit_of_request, batch.names, trunk)
    editor.learn_statistics(store)
    proposal = editor.propose(store)
    outer = outer_gradients(model, batch, proposal, trunk, 0.1, 1.0, shares)
    surrogate = surrogate_loss(outer.objective, proposal.carry(outer.gradients))
    surrogate.backward()
    ours = {name: parameter.grad.clone() for name, parameter in editor.named_parameters()}

    editor.zero_grad()
    expected = plain_loss(model, editor, batch, change, torch.ones(2) if shares is None else shares)
    expected.backward()
    torch.testing.assert_close(surrogate, expected, rtol=tolerance, atol=0)
    for name, parameter in editor.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours[name], parameter.grad, rtol=tolerance, atol=tolerance * scale)


def training_batch(model, requests_per_edit):
    def encode(pairs):
        return [model.encoder.encode(*pair) for pair in pairs]

    edit_of = [index // requests_per_edit for index in range(2)]
    return TrainingBatch(
        names=["first", "second"],
        edit=model.encoder.collate(encode(REQUESTS)),
        edit_of_request=torch.tensor(edit_of),
        outer=model.encoder.collate(encode(REPHRASES + LOCALITY)),
        edit_of_outer=torch.tensor(edit_of * 2),
        rephrases=2,
        edits=edit_of[-1] + 1,
    )


def plain_loss(model, editor, batch, change, shares):
    """The same loss, one text at a time, with whole weights edited by functional_call and full logits."""
    positions = batch.edit.answer_mask if editor.tokens == "answer" else None
    factors, _ = capture_factors(model, batch.edit, editor.edit_sites(model), None, positions)
    changes = {}
    for number, (name, site_factors) in enumerate(factors.items()):
        network = list(editor.networks.values())[0 if editor.shared else number]
        edit_of = batch.edit_of_request[site_factors.rows]
        site = torch.tensor(number if editor.shared else 0)
        index = torch.tensor(number)
        for edit in range(batch.edits):
            rows = edit_of == edit
            changes[name, edit] = change(
                editor, Site(network, site), index, site_factors.x[rows], site_factors.delta[rows]
            )

    def logits(ids, edit):
        weights = {}
        for name in factors:
            site = model.layer_map.named_site(name)
            weights[f"{name}.weight"] = site.weight + site.oriented(changes[name, edit])
        return torch.func.functional_call(model.model, weights, (ids,)).logits[0].log_softmax(-1)

    edit_losses, locality_losses = [], []
    for row, pair in enumerate(REPHRASES + LOCALITY):
        text = model.encoder.encode(*pair)
        ids, predicting = torch.tensor([text.ids]), torch.arange(*text.target) - 1
        after = logits(ids, int(batch.edit_of_outer[row]))[predicting]
        if row < 2:
            edit_losses.append(-after[torch.arange(len(predicting)), torch.tensor(text.target_ids)].mean())
        else:
            before = model.model(ids).logits[0, predicting].log_softmax(-1)
            locality_losses.append((before.exp() * (before - after)).sum(-1).mean())
    return 0.1 * torch.stack(edit_losses).mean() + (torch.stack(locality_losses) * shares).mean()
