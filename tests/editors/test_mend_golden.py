"""MEND against numbers computed by the authors' own code on the same tiny models.

Source: eric-mitchell/mend at commit e04fdb9cc784188906feffeb171025872933a5a8, ``EditTrainer.edit_step`` in float64; the
lines that were changed to run it in double precision are listed in each file under "source". The authors add lr · x̃ δ̃,
we subtract α · x̃ δ̃ as the paper does, so their lr is our -α.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.editors import MEND
from lightning_edit.editors.factors import FactorStore
from lightning_edit.functional.surrogate import surrogate_loss
from lightning_edit.models import LanguageModel
from lightning_edit.models.capture import capture_factors
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.outer_losses import outer_losses
from lightning_edit.tokenization import TokenBatch
from tests.tiny_models import byte_level_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
# Hugging Face's Llama normalises in float32 whatever the model's dtype, hence its coarser tolerance.
TOLERANCE = {"gpt2": 1e-9, "llama": 2e-5}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=["gpt2", "llama"])
def golden(request):
    content = json.loads((GOLDEN / f"mend_{request.param}.json").read_text())
    content["tolerance"] = TOLERANCE[request.param]
    return content


@pytest.fixture
def model(golden):
    settings = golden["config"]
    config = getattr(transformers, settings["config_class"])(**settings["model_kwargs"])
    config._attn_implementation = settings["attn_implementation"]
    base = getattr(transformers, settings["model_class"])(config).double()
    base.load_state_dict({name: double(values) for name, values in golden["base_state"].items()})
    return LanguageModel(base, byte_level_tokenizer())


@pytest.fixture
def editor(golden, model):
    mend = MEND(sites=[1, 2], rank=golden["config"]["mend"]["rank"])
    mend.setup(model)
    mend.double().eval()
    [network] = mend.networks.values()
    state = {name: double(values) for name, values in golden["hypernet_state"].items()}
    prefix = f"mend.{golden['hypernet_key']}.mlp.layers"
    with torch.no_grad():
        for index, layer in enumerate(network.layers):
            for ours, theirs in NAMES.items():
                getattr(layer, ours).copy_(state[f"{prefix}.{index}.{theirs}"])
        for size, rate in zip(mend.step_sizes.values(), golden["edit_lrs"], strict=True):
            size.copy_(double(-rate))
    return mend


NAMES = {"u": "u", "v": "v", "bias": "bias", "scale": "mode_scale.weight", "shift": "mode_shift.weight"}


def tokens(entry):
    ids, mask = torch.tensor(entry["input_ids"]), torch.tensor(entry["attention_mask"])
    target = torch.tensor(entry["labels"]) != -100
    return TokenBatch(ids, mask, mask.cumsum(1) - 1, target, torch.zeros_like(target))


def close(actual, expected, tolerance):
    expected = double(expected)
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * scale)


def set_statistics(network, mean, std, count=100.0):
    network.statistics.count.fill_(count)
    network.statistics.mean.copy_(mean)
    network.statistics.square.copy_(std**2 * (count - 1))


class SiteStatistics:
    """Gives every site the statistics that the authors used, who normalise each site with those seen up to it."""

    def __init__(self, network, expected):
        self.network, self.expected = network, list(expected.values())

    def __call__(self, x, delta, site):
        expected = self.expected[int(site)]
        used = {name: double(expected["stats_used"][name]) for name in ("u_mean", "v_mean", "u_std", "v_std")}
        mean, std = torch.cat([used["u_mean"], used["v_mean"]]), torch.cat([used["u_std"], used["v_std"]])
        set_statistics(self.network, mean, std)
        return type(self.network).forward(self.network, x, delta, site)


@pytest.mark.parametrize("edit", [0, 1])
def test_factors_updates_and_outer_gradients(golden, model, editor, edit, monkeypatch):
    tolerance, expected = golden["tolerance"], golden["expected"]["edits"][edit]
    inner = tokens(golden["inputs"][edit]["edit_inner"])
    factors, _ = capture_factors(model, inner, editor.edit_sites(model))
    for site_factors, theirs in zip(factors.values(), expected["sites"].values(), strict=True):
        kept = torch.tensor(theirs["nz_mask"])
        close(site_factors.x, double(theirs["x"])[kept].tolist(), tolerance)
        close(site_factors.delta, double(theirs["delta"])[kept].tolist(), tolerance)

    [network] = editor.networks.values()
    monkeypatch.setattr(network, "forward", SiteStatistics(network, expected["sites"]))
    proposal = editor.propose(store_of(factors))
    for (name, change), theirs in zip(proposal.stacked.items(), expected["sites"].values(), strict=True):
        size = editor.step_sizes[name.replace(".", "/")]
        close(change.a[0].T, theirs["x_tilde"], tolerance)
        close(-change.b[0] / size, theirs["delta_tilde"], tolerance)
        site = model.layer_map.named_site(name)
        close(site.oriented(change.a[0] @ change.b[0]), theirs["update"], tolerance)

    entry = golden["inputs"][edit]
    batch = outer_batch(entry)
    edit_loss, _ = outer_losses(model, batch, proposal.stacked, Trunk(model, 1))
    # The authors' divergence runs over all positions of the locality prompt, ours over those that predict its answer.
    locality = full_divergence(model, tokens(entry["loc"]), proposal.stacked)
    close(edit_loss.mean(), expected["l_edit"], tolerance)
    close(locality, expected["l_loc"], tolerance)
    loss = golden["config"]["cedit"] * edit_loss.mean() + golden["config"]["cloc"] * locality
    close(loss, expected["l_total"], tolerance)

    surrogate_loss(loss, proposal.carry(torch.autograd.grad(loss, proposal.leaves))).backward()
    prefix = f"mend.{golden['hypernet_key']}.mlp.layers"
    for index, layer in enumerate(network.layers):
        for ours, theirs in NAMES.items():
            close(getattr(layer, ours).grad, expected["grads"][f"{prefix}.{index}.{theirs}"], tolerance)
    sizes = torch.stack([size.grad for size in editor.step_sizes.values()])
    close(-sizes, expected["grads"]["edit_lrs"], tolerance)


def store_of(factors):
    return FactorStore.of(factors, torch.tensor([0]), 1)


def outer_batch(entry):
    outer = tokens(entry["edit_outer"])
    return TrainingBatch(["golden"], outer, torch.tensor([0]), outer, torch.tensor([0]), 1, 1)


def full_divergence(model, batch, edited):
    from lightning_edit.edits.hooks import added_terms
    from lightning_edit.functional.divergence import kl_divergence

    everywhere = batch.attention_mask.bool()
    before = model.head_logits(batch, everywhere)[0].detach()
    with added_terms(model, {name: change.term(torch.tensor([0])) for name, change in edited.items()}):
        return kl_divergence(before, model.head_logits(batch, everywhere)[0]).mean()


def test_running_statistics_after_both_edits(golden, model, editor):
    editor.train()
    for entry in golden["inputs"]:
        factors, _ = capture_factors(model, tokens(entry["edit_inner"]), editor.edit_sites(model))
        editor.stack(store_of(factors))
    [network] = editor.networks.values()
    theirs = golden["expected"]["edits"][1]["running_stats"]
    close(network.statistics.count, theirs["k"][0], golden["tolerance"])
    close(network.statistics.mean, theirs["u_mean"] + theirs["v_mean"], golden["tolerance"])
    close(network.statistics.square, theirs["u_s"] + theirs["v_s"], 10 * golden["tolerance"])


def test_evaluation_uses_all_collected_statistics(golden, model, editor):
    theirs = golden["expected"]["edits"][1]["running_stats"]
    [network] = editor.networks.values()
    mean, std = double(theirs["u_mean"] + theirs["v_mean"]), double(theirs["u_std"] + theirs["v_std"])
    set_statistics(network, mean, std)
    factors, _ = capture_factors(model, tokens(golden["inputs"][0]["edit_inner"]), editor.edit_sites(model))
    stacked = editor.stack(store_of(factors))
    for (name, change), expected in zip(
        stacked.items(), golden["expected"]["eval_first_edit"]["sites"].values(), strict=True
    ):
        site = model.layer_map.named_site(name)
        close(site.oriented(change.a[0] @ change.b[0]), expected["update"], golden["tolerance"])
