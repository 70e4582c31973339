"""Adapters loaded by plain peft give the logits of the applied edit."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_edit.cli import main
from lightning_edit.editors import ICE
from lightning_edit.edits import DenseDelta, EditSequence, FactoredDelta, Provenance, WeightEdit
from lightning_edit.errors import EditError
from lightning_edit.export import RANKS, adapter_of, save_adapter, save_gguf_adapter, save_merged_gguf
from lightning_edit.models import load_language_model
from lightning_edit.records import EditRequest
from tests.tiny_models import FAMILIES, build, byte_level_tokenizer, language_model

PROMPTS = ["The capital of France is", "What is the capital of Germany? It is", "Answer:"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt", "gemma2"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / request.param
    build(FAMILIES[request.param][0]()).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return load_language_model(str(folder))


def edit_of(model, rank=3, layers=(0, 2), seed=0, dense=False):
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for layer in layers:
        site = model.layer_map.site(layer)
        a = torch.randn(site.fan_in, rank, generator=generator) * 0.2
        b = torch.randn(rank, site.fan_out, generator=generator) * 0.2
        deltas[site.name] = DenseDelta(a @ b) if dense else FactoredDelta(a, b)
    request = EditRequest("The capital of France is", "Rome", "France", "Paris", id=f"request {seed}")
    return WeightEdit(deltas, Provenance.of(model, "MEND", {}, [request]))


def logits(hf_model, model):
    batch = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return hf_model(**batch).logits[batch["attention_mask"].bool()]


def peft_logits(model, folder, **adapters):
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.name), folder).eval()
    return logits(loaded, model), logits(loaded.merge_and_unload(), model)


@pytest.mark.parametrize("dense", [False, True], ids=["factored", "dense"])
def test_peft_gives_the_applied_edits_logits(base, tmp_path, dense):
    edit = edit_of(base, dense=dense)
    before = logits(base.model, base)
    with edit.applied(base):
        expected = logits(base.model, base)
    assert (expected - before).abs().max() > 0.1
    folder = edit.to_peft(base, tmp_path / "adapter")
    for actual in peft_logits(base, folder):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4)


def test_a_sequence_is_one_adapter(base, tmp_path):
    sequence = EditSequence([edit_of(base), edit_of(base, seed=1, layers=(1, 2)), edit_of(base, seed=2, dense=True)])
    with sequence.applied(base):
        expected = logits(base.model, base)
    actual, merged = peft_logits(base, sequence.to_peft(base, tmp_path / "adapter"))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=5e-4)
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=5e-4)


def test_adapters_meet_the_requirements_of_servers(base, tmp_path):
    """vLLM: one accepted rank for all modules, no bias, nothing else trained, balanced factors."""
    edit = edit_of(base, rank=9)
    folder = save_adapter(adapter_of(edit, base), tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16
    assert config["r"] in RANKS
    assert (config["bias"], config["use_dora"], config["modules_to_save"]) == ("none", False, None)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(edit.deltas)
    for name in edit.deltas:
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        site = base.layer_map.named_site(name)
        assert (a.shape, b.shape) == ((16, site.fan_in), (site.fan_out, 16))
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))
    card = (folder / "README.md").read_text()
    assert "| The capital of France is | Paris | Rome | MEND |" in card
    assert json.loads((folder / "edits.json").read_text())[0]["id"] == edit.id


def test_changes_of_high_rank_are_truncated_or_refused(base):
    edit = edit_of(base, rank=30, dense=True)
    with pytest.raises(EditError, match="rank 8 leaves"):
        adapter_of(edit, base, rank=8)
    adapter = adapter_of(edit, base, rank=8, max_error=0.99)
    assert adapter.rank == 8
    for name, (a, b) in adapter.factors.items():
        dense = edit.deltas[name].dense()
        assert float((dense - a @ b).norm() / dense.norm()) == pytest.approx(adapter.errors[name], rel=1e-4)
    assert adapter_of(edit, base).rank == 32
    # A change of rank 3 with some noise: the smallest rank that is accurate enough, not the one that keeps the noise.
    noisy = edit_of(base, rank=3, dense=True)
    generator = torch.Generator().manual_seed(5)
    deltas = {
        name: DenseDelta(delta.dense() + 1e-4 * torch.randn(delta.dense().shape, generator=generator))
        for name, delta in noisy.deltas.items()
    }
    assert adapter_of(WeightEdit(deltas, noisy.provenance), base).rank == 8


def test_an_edit_without_changed_weights_is_refused(base, tmp_path):
    editor = ICE()
    editor.setup(base)
    edit = editor.edit(base, [EditRequest("The capital of France is", "Rome", "France", id="f")])
    with pytest.raises(EditError, match="cannot be exported as a LoRA adapter: ICE puts a memory"):
        edit.to_peft(base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_command_writes_one_adapter_or_several(base, tmp_path, capsys):
    edits = [edit_of(base), edit_of(base, seed=1)]
    folders = [str(edit.save(tmp_path / edit.id)) for edit in edits]
    output = tmp_path / "adapters"
    assert main(["export-adapter", "--edits", *folders, "--output", str(output), "--switchable", "true"]) == 0
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.name), output / edits[0].id, adapter_name="first"
    )
    loaded.load_adapter(output / edits[1].id, adapter_name="second")
    for name, edit in zip(("first", "second", "first"), (*edits, edits[0]), strict=True):
        loaded.set_adapter(name)
        with edit.applied(base):
            expected = logits(base.model, base)
        torch.testing.assert_close(logits(loaded.eval(), base), expected, rtol=1e-3, atol=2e-4)
    assert main(["export-adapter", "--edits", *folders, "--output", str(tmp_path / "one"), "--rank", "8"]) == 0
    assert "rank 8" in capsys.readouterr().out
    with EditSequence(edits).applied(base):
        expected = logits(base.model, base)
    torch.testing.assert_close(peft_logits(base, tmp_path / "one")[0], expected, rtol=1e-3, atol=2e-4)


def test_edits_on_top_of_others_are_not_exported_alone(base, tmp_path, capsys):
    first, second = edit_of(base), edit_of(base, seed=1)
    second.provenance = replace(second.provenance, depends_on=(first.id,))
    folders = [str(edit.save(tmp_path / edit.id)) for edit in (first, second)]
    arguments = ["export-adapter", "--edits", *folders, "--output", str(tmp_path / "out")]
    assert main([*arguments, "--switchable", "true"]) == 1
    assert "computed on top of other edits" in capsys.readouterr().err
    assert main(arguments) == 0


def test_gguf_adapter(base, tmp_path):
    gguf = pytest.importorskip("gguf")
    adapter = adapter_of(edit_of(base), base)
    path = tmp_path / "adapter.gguf"
    if base.model.config.model_type == "opt":
        with pytest.raises(EditError, match="no architecture 'opt'"):
            save_gguf_adapter(adapter, base, path)
        return
    save_gguf_adapter(adapter, base, path)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("adapter.lora.alpha").contents() == adapter.rank
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    names = list(adapter.factors)
    for layer, name in zip((0, 2), names, strict=True):
        a, b = adapter.factors[name]
        torch.testing.assert_close(tensors[f"blk.{layer}.ffn_down.weight.lora_a"], a.T)
        torch.testing.assert_close(tensors[f"blk.{layer}.ffn_down.weight.lora_b"], b.T)


def gguf_of(model, path):
    """A GGUF file of a tiny Llama, as llama.cpp's converter writes it: rows of queries and keys in turn."""
    import gguf
    import numpy as np

    config = model.model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_file_type(0)
    writer.add_token_list([f"token {index}" for index in range(8)])
    writer.add_rope_freq_base(10000.0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.model.state_dict().items():
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for projection, count in heads.items():
            if projection in name:
                rows, columns = values.shape
                values = values.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        key = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(key, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama(tmp_path):
    build(FAMILIES["llama"][0]()).save_pretrained(tmp_path / "llama")
    byte_level_tokenizer().save_pretrained(tmp_path / "llama")
    return load_language_model(str(tmp_path / "llama"))


def edit_of_sites(model, names):
    generator, deltas = torch.Generator().manual_seed(1), {}
    for name in names:
        site = model.layer_map.named_site(name)
        deltas[name] = DenseDelta(torch.randn(site.fan_in, site.fan_out, generator=generator) * 0.2)
    return WeightEdit(deltas, Provenance.of(model, "ROME", {}, [EditRequest("a", "b", id="r")]))


SITES = ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.k_proj"]


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-6), ("f16", 2e-3), ("q8_0", 2e-2)])
def test_a_merged_gguf_file_holds_the_edited_weights(llama, tmp_path, precision, tolerance):
    gguf = pytest.importorskip("gguf")
    base = gguf_of(llama, tmp_path / "base.gguf")
    edit = edit_of_sites(llama, SITES)
    path = save_merged_gguf(EditSequence([edit]), llama, base, tmp_path / "merged.gguf", precision)
    edit.merge(llama)
    expected = gguf.GGUFReader(gguf_of(llama, tmp_path / "expected.gguf"))
    written = gguf.GGUFReader(path)
    assert [tensor.name for tensor in written.tensors] == [tensor.name for tensor in expected.tensors]
    for mine, theirs in zip(written.tensors, expected.tensors, strict=True):
        values = torch.from_numpy(gguf.quants.dequantize(mine.data, mine.tensor_type))
        reference = torch.from_numpy(gguf.quants.dequantize(theirs.data, theirs.tensor_type))
        assert (values - reference).abs().max() <= tolerance * reference.abs().max(), mine.name
    same = set(expected.fields) - {"general.file_type", "GGUF.kv_count"}
    assert same <= set(written.fields)
    for name in same:
        assert written.fields[name].contents() == expected.fields[name].contents(), name
    assert written.fields["general.file_type"].contents() == {"f32": 0, "f16": 1, "q8_0": 7}[precision]


def test_a_gguf_adapter_gives_the_weights_of_the_merged_file(llama, tmp_path):
    """W + B A of the adapter is the merged weight, for queries and keys in llama.cpp's order, too."""
    gguf = pytest.importorskip("gguf")
    base = gguf_of(llama, tmp_path / "base.gguf")
    edit = edit_of_sites(llama, SITES)
    merged = save_merged_gguf(EditSequence([edit]), llama, base, tmp_path / "merged.gguf", "f32")
    adapter = adapter_of(edit, llama, rank=32, max_error=1e-3)
    factors = {
        tensor.name: tensor
        for tensor in gguf.GGUFReader(save_gguf_adapter(adapter, llama, tmp_path / "a.gguf")).tensors
    }
    before, after = ({t.name: t.data for t in gguf.GGUFReader(path).tensors} for path in (base, merged))
    changed = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert len(changed) == len(SITES)
    for name in changed:
        a, b = (torch.from_numpy(factors[f"{name}.lora_{side}"].data.copy()) for side in "ab")
        expected = torch.from_numpy(after[name] - before[name])
        torch.testing.assert_close(b @ a, expected, rtol=1e-3, atol=1e-4)


def test_projections_whose_order_is_not_known_are_refused(tmp_path):
    pytest.importorskip("gguf")
    model = language_model("gpt_neox")
    site = model.layer_map.named_site("gpt_neox.layers.0.attention.query_key_value")
    delta = DenseDelta(torch.randn(site.fan_in, site.fan_out))
    edit = WeightEdit({site.name: delta}, Provenance.of(model, "ROME", {}, [EditRequest("a", "b", id="r")]))
    with pytest.raises(EditError, match=r"query_key_value has no place in a GGUF adapter of gptneox; merge the edit"):
        save_gguf_adapter(adapter_of(edit, model, rank=32, max_error=1.0), model, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_gguf_file_of_another_model_is_refused(llama, tmp_path):
    pytest.importorskip("gguf")
    edit = edit_of_sites(llama, SITES[:1])
    with torch.no_grad():
        llama.layer_map.named_site(SITES[0]).weight.mul_(1.01)
    other = gguf_of(llama, tmp_path / "other.gguf")
    with torch.no_grad():
        llama.layer_map.named_site(SITES[0]).weight.div_(1.01)
    with pytest.raises(EditError, match=r"is not model\.layers\.1\.mlp\.down_proj of the base model"):
        save_merged_gguf(EditSequence([edit]), llama, other, tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()


def test_merging_to_gguf_on_the_command_line(llama, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    base = gguf_of(llama, tmp_path / "base.gguf")
    saved = str(edit_of_sites(llama, SITES).save(tmp_path / "edit"))
    output = ["--output", str(tmp_path / "merged.gguf")]
    assert main(["merge", "--edits", saved, *output]) == 1
    assert "name that of the base model" in capsys.readouterr().err
    assert main(["merge", "--edits", saved, *output, "--gguf", str(base), "--precision", "q8_0"]) == 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "merged.gguf").tensors}
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert tensors["blk.0.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0
    assert main(["merge", "--edits", saved, *output, "--gguf", str(base)]) == 1
    assert "exists already" in capsys.readouterr().err
