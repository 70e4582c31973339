import pytest
import torch

from lightning_edit.errors import LayerMapError
from lightning_edit.models import LayerMap
from tests.tiny_models import FAMILIES, REFUSED, build


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_mlp_output_projection(family):
    config, name, fan_in, orientation = FAMILIES[family]
    model = build(config())
    layers = LayerMap(model)
    site = layers.site(1)
    assert (site.name, site.layer, site.fan_in, site.fan_out) == (name, 1, fan_in, 32)
    assert site.orientation.value == orientation
    assert len(layers) == 3
    assert layers.block(1) is model.get_submodule(layers.blocks_name)[1]


ATTENTION = {
    "gpt2": "transformer.h.1.attn.c_proj",
    "gptj": "transformer.h.1.attn.out_proj",
    "gpt_neo": "transformer.h.1.attn.attention.out_proj",
    "gpt_neox": "gpt_neox.layers.1.attention.dense",
    "opt": "model.decoder.layers.1.self_attn.out_proj",
    "bloom": "transformer.h.1.self_attention.dense",
    "falcon": "transformer.h.1.self_attention.dense",
    "phi": "model.layers.1.self_attn.dense",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_attention_output_projection(family):
    site = LayerMap(build(FAMILIES[family][0]())).attention_site(1)
    assert site.name == ATTENTION.get(family, "model.layers.1.self_attn.o_proj")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_orientation_of_a_square_weight_is_that_of_its_module(family):
    config = FAMILIES[family][0]()
    setattr(config, "n_inner" if family == "gpt2" else "intermediate_size", 32)
    name = FAMILIES[family][1].replace(".1.", ".{}.")
    # Shapes alone do not distinguish a square projection from other maps; if named, its orientation is known.
    with pytest.raises(LayerMapError, match="name the edit site yourself"):
        LayerMap(build(config)).site(1)
    site = LayerMap(build(config), site=name).site(1)
    assert site.fan_in == site.fan_out == 32
    x = torch.randn(5, 32)
    expected = site.module(x) - site.module(torch.zeros(1, 32))
    torch.testing.assert_close(expected, x @ site.oriented(site.weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_orientation_describes_how_the_module_multiplies(family):
    model = build(FAMILIES[family][0]())
    site = LayerMap(model).site(1)
    x = torch.randn(5, site.fan_in)
    bias = site.module(torch.zeros(1, site.fan_in))
    matrix = site.oriented(site.weight)  # orientation is an involution: module's own form to (fan_in, fan_out)
    torch.testing.assert_close(site.module(x) - bias, x @ matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_refuses_ambiguous_structures_and_lists_candidates(family):
    model = build(REFUSED[family]())
    with pytest.raises(LayerMapError, match=r"name the edit site yourself \(site: one of \[.*\{\}"):
        LayerMap(model).site(1)


def test_a_refused_model_can_be_configured_by_hand():
    model = build(REFUSED["mamba"]())
    site = LayerMap(model, site="backbone.layers.{}.mixer.out_proj").site(-1)
    assert (site.name, site.layer, site.fan_out) == ("backbone.layers.2.mixer.out_proj", 2, 32)


def test_unknown_layers_and_names_are_errors():
    layers = LayerMap(build(FAMILIES["llama"][0]()))
    with pytest.raises(LayerMapError, match="layer 3 does not exist"):
        layers.site(3)
    with pytest.raises(LayerMapError, match=r"'model\.layers\.0\.mlp' is not a linear map"):
        layers.named_site("model.layers.0.mlp")
    with pytest.raises(LayerMapError, match="'nothing' is no module"):
        layers.named_site("nothing")
    with pytest.raises(LayerMapError, match="twice"):
        layers.sites([-1, 2])
