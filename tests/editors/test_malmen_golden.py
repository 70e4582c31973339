"""MALMEN against numbers computed by the authors' own code on the same tiny models.

Source: ChenmienTan/malmen at commit 1df295dc032b3ff9a002976e081432cb4f09d342, ``MALMEN.train`` in float64; the lines
that were changed to run it in double precision are listed in each file under "source". The authors' loss of a batch is
a mean over all of its target tokens, ours over each text's own and then over the texts, so the tests weight the texts.
"""

import json

import pytest
import torch
import transformers

from lightning_edit.data.batches import TrainingBatch
from lightning_edit.editors import MALMEN
from lightning_edit.editors.factors import FactorStore
from lightning_edit.models import LanguageModel
from lightning_edit.models.capture import GradientFactors, capture_factors
from lightning_edit.models.trunk import Trunk
from lightning_edit.modules.outer_losses import outer_losses
from lightning_edit.tokenization import TokenBatch
from tests.editors.test_mend_golden import GOLDEN, close, double, set_statistics
from tests.tiny_models import byte_level_tokenizer

NAMES = {"u": "B", "v": "A", "bias": "bias", "scale": "scale.weight", "shift": "shift.weight"}
"""The authors multiply rows by A and then by B; ours are the transposed factors."""
NETWORK = "(20, 8)"


@pytest.fixture(params=["gpt2", "llama"])
def golden(request, monkeypatch):
    content = json.loads((GOLDEN / f"malmen_{request.param}.json").read_text())
    if request.param == "llama":
        # Hugging Face's Llama always normalises in float32; these numbers were computed in float64 throughout.
        content["expected"] = content["expected_float64_rmsnorm"]
        monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaRMSNorm, "forward", rms_norm)
    return content


def rms_norm(self, hidden):
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.fixture
def model(golden):
    settings = golden["config"]
    kind = getattr(transformers, settings["model_class"])
    config = kind.config_class(**settings["model_kwargs"])
    config._attn_implementation = settings["attn_implementation"]
    base = kind(config).double()
    base.load_state_dict({name: double(values) for name, values in golden["base_state"].items()})
    return LanguageModel(base, byte_level_tokenizer())


def make_editor(golden, model, state, **settings):
    rank = golden["config"]["malmen"]["editor"]["rank"]
    malmen = MALMEN(sites=[1, 2], rank=rank, epsilon=torch.finfo(torch.float64).eps, **settings)
    malmen.setup(model)
    malmen.double().eval()
    [network] = malmen.networks.values()
    with torch.no_grad():
        for index, layer in enumerate(network.layers):
            for ours, theirs in NAMES.items():
                values = double(state[f"{NETWORK}.blocks.{index}.{theirs}"])
                getattr(layer, ours).copy_(values.T if ours in "uv" else values)
        for parameters, name in ((malmen.step_sizes, "lr"), (malmen.log_ridges, "lamda")):
            for parameter, value in zip(parameters.values(), state[f"{NETWORK}.{name}.weight"], strict=True):
                parameter.copy_(double(value[0]))
    return malmen


def tokens(entry):
    """Their inputs omit the last target token; ours include it."""
    ids, mask = torch.tensor(entry["input_ids"]), torch.tensor(entry["attention_mask"])
    labels = torch.tensor(entry["labels"])
    ids, mask, target = (torch.nn.functional.pad(value, (0, 1)) for value in (ids, mask, torch.zeros_like(mask)))
    for row, row_labels in enumerate(labels):
        positions = (row_labels != -100).nonzero()[:, 0]
        ids[row, positions + 1], mask[row, positions + 1], target[row, positions + 1] = row_labels[positions], 1, 1
    return TokenBatch(ids, mask, mask.cumsum(1) - 1, target.bool(), torch.zeros_like(target).bool())


def weights(batch):
    """Share of each text in a mean over all target tokens."""
    return batch.target_lengths.double() / batch.target_lengths.sum()


def stored(expected):
    """Their recorded factors in our store."""
    factors = {
        name: GradientFactors(double(entry["keys"]), double(entry["values_grad"]), torch.arange(len(entry["keys"])))
        for name, entry in expected["sites"].items()
    }
    rows = max(len(site_factors.x) for site_factors in factors.values())
    return FactorStore.of(factors, torch.zeros(rows, dtype=torch.int64), 1)


@pytest.mark.parametrize("step", [0, 1])
def test_keys_and_value_gradients(golden, model, step):
    expected = golden["expected"]["steps"][step]
    editor = make_editor(golden, model, golden["hypernet_state"])
    actual = {name: ([], []) for name in expected["sites"]}
    for entry in golden["inputs"][step]["edit_batches"]:
        batch = tokens(entry)
        factors, _ = capture_factors(model, batch, editor.edit_sites(model), None, batch.answer_mask)
        for name, site_factors in factors.items():
            actual[name][0].append(site_factors.x)
            actual[name][1].append(site_factors.delta * weights(batch)[site_factors.rows][:, None])
    for name, (keys, gradients) in actual.items():
        close(torch.cat(keys), expected["sites"][name]["keys"], 1e-9)
        close(torch.cat(gradients), expected["sites"][name]["values_grad"], 1e-9)


@pytest.mark.parametrize("rows_per_chunk", [1024, 5])
@pytest.mark.parametrize("step", [0, 1])
def test_shifts_and_meta_gradients(golden, model, step, rows_per_chunk):
    expected = golden["expected"]["steps"][step]
    editor = make_editor(golden, model, golden["hypernet_state"], rows_per_chunk=rows_per_chunk)
    [network] = editor.networks.values()
    theirs = {name: double(expected["normalizer"][f"{NETWORK}.normalizer.{name}"]) for name in ("mean", "std")}
    set_statistics(network, theirs["mean"], theirs["std"])
    check_step(golden, model, editor, expected, golden["inputs"][step], stored(expected))


def test_the_published_start_passes_gradients_through_the_clamp(golden, model):
    start = golden["published_init"]
    editor = make_editor(golden, model, start["hypernet_state"])
    [network] = editor.networks.values()
    source = golden["expected"]["steps"][0]
    theirs = {name: double(source["normalizer"][f"{NETWORK}.normalizer.{name}"]) for name in ("mean", "std")}
    set_statistics(network, theirs["mean"], theirs["std"])
    # The file's start was computed with the stock RMSNorm, which rounds to float32.
    tolerance = 1e-9 if golden["config"]["model_class"].startswith("GPT2") else 2e-5
    check_step(golden, model, editor, start["expected"]["steps"][0], golden["inputs"][0], stored(source), tolerance)


def check_step(golden, model, editor, expected, entries, store, tolerance=1e-9):
    proposal = editor.propose(store)
    for name, change in proposal.stacked.items():
        close(change[0].dense(), expected["sites"][name]["param_shift"], tolerance)
    loss = torch.zeros((), dtype=torch.float64)
    for kind in ("equiv_batches", "unrel_batches"):
        for entry in entries[kind]:
            batch = tokens(entry)
            edited = 0 if kind == "unrel_batches" else len(batch)
            of = torch.zeros(len(batch), dtype=torch.int64)
            outer = TrainingBatch(["golden"], batch, of, batch, of, edited, 1)
            losses = outer_losses(model, outer, proposal.stacked, Trunk(model, 1))
            loss = loss + (torch.cat(losses) * weights(batch)).sum()
    close(loss, expected["losses"]["meta_objective"], tolerance)
    proposal.carry(torch.autograd.grad(loss, proposal.leaves)).backward()
    gradients = expected["hypernet_grads"]
    [network] = editor.networks.values()
    for index, layer in enumerate(network.layers):
        for ours, theirs in NAMES.items():
            values = double(gradients[f"{NETWORK}.blocks.{index}.{theirs}"])
            close(getattr(layer, ours).grad, (values.T if ours in "uv" else values).tolist(), tolerance)
    for parameters, name in ((editor.step_sizes, "lr"), (editor.log_ridges, "lamda")):
        actual = torch.stack([parameter.grad for parameter in parameters.values()])
        close(actual[:, None], gradients[f"{NETWORK}.{name}.weight"], tolerance)
