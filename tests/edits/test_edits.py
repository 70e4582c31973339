import json
import os
import random
import shutil
import warnings
from functools import reduce

import pytest
import torch

from lightning_edit.components import build
from lightning_edit.editors import Editor, GradientStep
from lightning_edit.edits import (
    DenseDelta,
    EditBatch,
    EditSequence,
    FactoredDelta,
    Provenance,
    StackedFactors,
    WeightChanges,
    WeightEdit,
    load_edit,
)
from lightning_edit.edits.base import losses_under
from lightning_edit.edits.deltas import add
from lightning_edit.edits.hooks import added_terms
from lightning_edit.errors import BaseModelMismatchError, ConfigurationError, EditError, SourceNotFoundError
from lightning_edit.manifests import write_manifest
from lightning_edit.models import LanguageModel, Likeness
from lightning_edit.models.passes import BatchRows
from lightning_edit.models.perplexity import losses_of_rows
from tests.testers import REQUESTS, assert_untouched, state, target_log_probs
from tests.tiny_models import FAMILIES, byte_level_tokenizer, language_model
from tests.tiny_models import build as build_model

SITE = "model.layers.1.mlp.down_proj"


def edit_of(model, delta, id="an-edit", depends_on=()):
    provenance = Provenance.of(model, "test", {}, REQUESTS[:1])
    return WeightEdit({SITE: delta}, Provenance(**{**vars(provenance), "id": id, "depends_on": depends_on}))


def factored(rank=2, seed=0):
    torch.manual_seed(seed)
    return FactoredDelta(0.1 * torch.randn(48, rank), 0.1 * torch.randn(rank, 32))


@pytest.mark.parametrize("delta", [factored(), DenseDelta(factored().dense())], ids=["factored", "dense"])
def test_a_weight_edit_is_the_changed_weight(delta):
    model = language_model("llama")
    edit = edit_of(model, delta)
    with edit.applied(model) as edited:
        hooked = target_log_probs(edited, REQUESTS)
    changed = language_model("llama")
    changed.model.model.layers[1].mlp.down_proj.weight.add_(delta.dense().T)
    torch.testing.assert_close(hooked, target_log_probs(changed, REQUESTS), rtol=1e-4, atol=1e-4)


def test_contexts_nest_and_unwind():
    model = language_model("llama")
    before, plain = state(model), target_log_probs(model, REQUESTS)
    first, second = edit_of(model, factored()), edit_of(model, factored(seed=1), "other")
    with first.applied(model):
        one = target_log_probs(model, REQUESTS)
        with second.applied(model):
            assert target_log_probs(model, REQUESTS) != one
        assert target_log_probs(model, REQUESTS) == one
    assert target_log_probs(model, REQUESTS) == plain
    assert_untouched(model, before)


def test_another_base_is_refused_and_both_are_named():
    model = language_model("llama")
    edit = edit_of(model, factored())
    other = language_model("llama")
    other.name = "somebody-else"
    other.model.model.embed_tokens.weight.add_(0.1)
    for use in (lambda: edit.applied(other).__enter__(), lambda: edit.merge(other)):
        with pytest.raises(
            BaseModelMismatchError, match=r"made for tiny-llama .* but the model given is somebody-else"
        ):
            use()
    with pytest.raises(BaseModelMismatchError):
        edit.applied(language_model("mistral")).__enter__()


def test_another_precision_of_the_same_base_is_a_recorded_warning():
    full, half = language_model("llama"), language_model("llama", torch.bfloat16)
    # The same weights rounded, as a published model is loaded in another precision.
    half.model.load_state_dict({k: v.to(torch.bfloat16) for k, v in full.model.state_dict().items()})
    assert full.fingerprint.compare(half.fingerprint) is Likeness.VARIANT
    edit = edit_of(full, factored())
    with pytest.warns(UserWarning, match="used with another precision"), edit.applied(half) as edited:
        hooked = target_log_probs(edited, REQUESTS)
    assert "bfloat16" in edit.check(half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit.merge(half)
    torch.testing.assert_close(target_log_probs(half, REQUESTS), hooked, rtol=0.1, atol=0.2)


def test_a_fine_tuned_copy_is_another_base_in_any_precision():
    full, tuned = language_model("llama"), language_model("llama", torch.bfloat16)
    for parameter in tuned.model.parameters():
        parameter.mul_(1.05)
    assert full.fingerprint.compare(tuned.fingerprint) is Likeness.DIFFERENT


def test_a_loaded_edit_knows_where_it_comes_from(tmp_path):
    model = language_model("llama")
    edit = edit_of(model, factored())
    folder = edit.save(tmp_path / "edit")
    assert sorted(path.name for path in folder.iterdir()) == ["edit.json", "edit.safetensors"]
    manifest = json.loads((folder / "edit.json").read_text())
    assert manifest["requests"][0]["target"] == "Rome"
    assert manifest["versions"]["torch"]
    loaded = load_edit(folder)
    assert loaded.provenance == edit.provenance
    edit.save(folder)  # an edit may be saved over an edit, never over anything else
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(EditError, match="exists and is not an edit"):
        edit.save(tmp_path / "mine")


def test_broken_edits_are_errors_in_words(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no edit here"):
        load_edit(tmp_path)
    (tmp_path / "edit.json").write_text("{}")
    with pytest.raises(EditError, match="not a manifest"):
        load_edit(tmp_path)
    for content, message in (
        ({"format": 99, "kind": "weight", "details": {}}, "format 99"),
        ({"format": 3, "kind": "magic", "details": {}}, "kind 'magic'; known are"),
        ({"format": 3, "kind": "weight", "details": {}}, "not a manifest of an edit"),
    ):
        write_manifest(tmp_path / "edit.json", content, [])
        with pytest.raises(EditError, match=message):
            load_edit(tmp_path)


def mutations(content, count, seed=0):
    """A file's content with one bit flipped, cut, or with a byte too many."""
    generator = random.Random(seed)
    for number in range(count):
        place = generator.randrange(len(content))
        if number % 3 == 0:
            yield content[:place]
        elif number % 3 == 1:
            yield content[:place] + bytes([content[place] ^ (1 << generator.randrange(8))]) + content[place + 1 :]
        else:
            yield content[:place] + b"0" + content[place:]


@pytest.mark.parametrize("name", ["edit.json", "edit.safetensors"])
def test_a_damaged_edit_is_refused_whatever_the_damage(tmp_path, name):
    folder = edit_of(language_model("llama"), factored()).save(tmp_path / "edit")
    original = (folder / name).read_bytes()
    for damaged in mutations(original, 60):
        (folder / name).write_bytes(damaged)
        with pytest.raises(EditError):
            load_edit(folder)
    (folder / name).write_bytes(original)
    load_edit(folder)


def test_an_edit_that_is_not_finite_is_refused(tmp_path):
    delta = factored()
    delta.a[0, 0] = float("nan")
    folder = edit_of(language_model("llama"), delta).save(tmp_path / "edit")
    with pytest.raises(EditError, match="is not finite"):
        load_edit(folder)


def test_a_manifest_of_another_edits_tensors_is_refused(tmp_path):
    model = language_model("llama")
    first = edit_of(model, factored()).save(tmp_path / "first")
    second = edit_of(model, factored(seed=1)).save(tmp_path / "second")
    shutil.copy(second / "edit.safetensors", first / "edit.safetensors")
    with pytest.raises(EditError, match="belongs to another manifest"):
        load_edit(first)


def test_every_element_counts_in_the_fingerprint():
    model = language_model("llama")
    before, generator = model.fingerprint, torch.Generator().manual_seed(0)
    parameters = dict(model.model.named_parameters())
    for number in range(40):
        name = sorted(parameters)[number % len(parameters)]
        flat = parameters[name].data.view(-1)
        place = int(torch.randint(len(flat), (1,), generator=generator))
        kept = flat[place].clone()
        flat[place] += 1e-3
        model.weights_changed()
        assert model.fingerprint.compare(before) is Likeness.DIFFERENT, name
        flat[place] = kept
    model.weights_changed()
    assert model.fingerprint == before


def test_a_killed_replacement_is_taken_back(tmp_path, monkeypatch):
    model = language_model("llama")
    folder = edit_of(model, factored(), "old").save(tmp_path / "edit")
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("lightning_edit.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        edit_of(model, factored(seed=1), "new").save(folder)
    monkeypatch.undo()
    assert not folder.exists()
    assert load_edit(folder).id == "old"
    edit_of(model, factored(seed=1), "new").save(folder)
    assert load_edit(folder).id == "new"


def test_a_link_to_a_folder_is_followed(tmp_path):
    model = language_model("llama")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    edit_of(model, factored(), "one").save(tmp_path / "link")
    assert load_edit(tmp_path / "real").id == "one"
    assert (tmp_path / "link").is_symlink()


def test_files_name_no_class_of_a_module_that_would_have_to_be_imported(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Nasty: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    described = {"class_path": "surprise.Nasty", "init_args": {}}
    with pytest.raises(ConfigurationError, match="LIGHTNING_EDIT_ALLOW=surprise"):
        build(described, Editor, "a file")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("LIGHTNING_EDIT_ALLOW", "other,surprise")
    with pytest.raises(ConfigurationError, match="is not a subclass of Editor"):
        build(described, Editor, "a file")
    assert (tmp_path / "ran").exists()


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    edit = edit_of(language_model("llama"), factored())
    monkeypatch.setattr("lightning_edit.edits.weight.save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit.save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_model_is_refused():
    model = language_model("llama")
    edit = edit_of(model, factored())
    model.model.model.layers[0].compile()
    with pytest.raises(EditError, match=r"is compiled \(model\.layers\.0\)"):
        edit.applied(model).__enter__()


def test_a_model_that_transformers_compiled_for_generation_is_refused():
    model = language_model("llama")
    model.model._compiled_call = model.model.__call__
    with pytest.raises(EditError, match="is compiled"):
        edit_of(model, factored()).applied(model).__enter__()


def test_perplexity_under_a_scorer_that_cannot_measure_it_is_an_error():
    model = language_model("llama")
    rows = torch.arange(12).view(2, 6)
    assert torch.equal(losses_under(model, model, rows), losses_of_rows(model, rows))
    changes = WeightChanges({model.layer_map.site(1).name: StackedFactors(torch.ones(2, 64, 1), torch.ones(2, 1, 32))})
    with changes.layered(model, [0, 1]) as scorer, pytest.raises(EditError, match="has no losses_of_rows"):
        losses_under(scorer, model, rows)


def test_merging_into_a_shared_weight_is_refused():
    model = language_model("llama")
    layers = model.model.model.layers
    layers[2].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    with pytest.raises(EditError, match="is shared by"):
        edit_of(model, factored()).merge(model)


def test_a_merged_model_is_another_base():
    model = language_model("llama")
    edit = edit_of(model, factored())
    before = model.fingerprint
    model.fast_paths.verify("suffixes", 1, 9)
    edit.merge(model)
    assert model.fingerprint.compare(before) is Likeness.DIFFERENT
    assert not model.fast_paths.is_verified("suffixes", 1, 9)
    with pytest.raises(BaseModelMismatchError):
        edit.merge(model)


def test_many_factors_fold_into_one_dense_change():
    few, many = [factored(2, seed) for seed in range(3)], [factored(5, seed) for seed in range(9)]
    assert isinstance(reduce(add, few), FactoredDelta)
    assert isinstance(reduce(add, many), DenseDelta)
    for deltas in (few, many, [*many, DenseDelta(factored().dense())]):
        torch.testing.assert_close(reduce(add, deltas).dense(), sum(delta.dense() for delta in deltas))


class TestSequence:
    def test_composes_merges_and_undoes(self):
        model = language_model("llama")
        edits = [edit_of(model, factored(seed=seed), f"e{seed}") for seed in range(3)]
        sequence = EditSequence(edits[:2]).then(edits[2])
        with sequence.applied(model) as edited:
            together = target_log_probs(edited, REQUESTS)
        with edits[0].applied(model), edits[1].applied(model), edits[2].applied(model) as edited:
            torch.testing.assert_close(target_log_probs(edited, REQUESTS), together, rtol=1e-4, atol=1e-4)
        assert sequence.without("e1").ids == ("e0", "e2")
        sequence.merge(model)
        torch.testing.assert_close(target_log_probs(model, REQUESTS), together, rtol=1e-4, atol=1e-4)

    def test_refuses_in_words(self):
        model = language_model("llama")
        first = edit_of(model, factored(), "first")
        second = edit_of(model, factored(seed=1), "second", depends_on=("first",))
        with pytest.raises(EditError, match="computed on top of"):
            EditSequence([second])
        with pytest.raises(EditError, match="twice"):
            EditSequence([first, first])
        with pytest.raises(EditError, match="cannot be undone alone"):
            EditSequence([first, second]).without("first")
        with pytest.raises(EditError, match="no edit third"):
            EditSequence([first]).without("third")


class TestBatch:
    def test_rows_are_checked(self):
        model = language_model("llama")
        batch = GradientStep(sites=[1]).edit_each(model, REQUESTS)
        assert len(batch) == 3
        with (
            pytest.raises(EditError, match="rows refer to the edits 0 to 3, but there are 3"),
            batch.applied(model, [0, 3]),
        ):
            pass
        ids = torch.ones(4, 5, dtype=torch.int64)
        terms = batch.changes.terms([0, 1, 2], BatchRows([0, 1, 2], torch.zeros(3)))
        with added_terms(model, terms), pytest.raises(EditError, match=r"4 rows|do not divide"):
            model.model(input_ids=ids)
        three = WeightChanges({SITE: StackedFactors(torch.zeros(3, 48, 1), torch.zeros(3, 1, 32))})
        with pytest.raises(EditError, match="2 edits, but changes for 3"):
            EditBatch(three, batch.provenances[:2])
        with pytest.raises(EditError, match=r"changes for \[2, 3\] edits"):
            WeightChanges({**three.stacked, "other": StackedFactors(torch.zeros(2, 48, 1), torch.zeros(2, 1, 32))})

    def test_another_base_is_refused(self):
        batch = GradientStep(sites=[1]).edit_each(language_model("llama"), REQUESTS)
        with pytest.raises(BaseModelMismatchError):
            batch.applied(language_model("qwen2"), [0]).__enter__()


def test_fingerprints_tell_models_apart_and_survive_json():
    model = language_model("llama")
    copy = LanguageModel(build_model(FAMILIES["llama"][0]()), byte_level_tokenizer())
    assert model.fingerprint == copy.fingerprint
    restored = type(model.fingerprint).from_dict(json.loads(json.dumps(model.fingerprint.to_dict())))
    assert restored.compare(model.fingerprint) is Likeness.SAME


def test_sequences_that_continue_the_same_one_share_no_edits():
    model = language_model("llama")
    edits = [GradientStep([1], 0.05).edit(model, [request]) for request in REQUESTS]
    first = EditSequence(edits[:1])
    second, other = first.then(edits[1]), first.then(edits[2])
    assert [len(sequence) for sequence in (first, second, other)] == [1, 2, 2]
    assert first.ids == (edits[0].id,)
    assert second.ids == (edits[0].id, edits[1].id)
    assert other.edits == (edits[0], edits[2])
    assert second.then(edits[2]).ids == tuple(edit.id for edit in edits)
    with pytest.raises(EditError, match="in the sequence twice"):
        second.then(edits[1])
    # An edit of the longer sequence alone is not in the shorter one.
    assert first.then(edits[1]).ids == second.ids
    with (
        first.applied(model),
        edits[1].applied(model),
        pytest.raises(EditError, match=f"the edit {edits[0].id} is applied"),
    ):
        other.applied(model).__enter__()
