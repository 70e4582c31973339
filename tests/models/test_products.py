"""Products through oneDNN against float64, and what leaves torch's own products alone."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_edit.models import products
from tests.tiny_models import language_model

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch comes without oneDNN"
)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """As on a processor that oneDNN's products are for."""
    monkeypatch.setattr(products, "_mkl_is_narrow", lambda: True)
    monkeypatch.setattr(products, "_MIN_PRODUCT", 1)
    products._is_faster_here.cache_clear()
    yield
    products._is_faster_here.cache_clear()


def linear_map(kind, bias=True):
    torch.manual_seed(0)
    module = nn.Linear(12, 7, bias=bias) if kind == "linear" else Conv1D(7, 12)
    nn.init.normal_(module.weight)
    return module.requires_grad_(False)


def expected(module, x):
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    bias = 0 if module.bias is None else module.bias.double()
    return x.double() @ weight.double().T + bias


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (0, 12)])
@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_values_and_gradients_are_those_of_float64(kind, bias, shape):
    module, x = linear_map(kind, bias), torch.randn(shape, requires_grad=True)
    products.use_wide_products(module)
    y, wide = module(x), x.detach().double().requires_grad_()
    reference = expected(module, wide)
    torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=1e-5)
    weights = torch.randn(y.shape)
    [gradient] = torch.autograd.grad((y**2 * weights).sum(), x, create_graph=True)
    [wanted] = torch.autograd.grad((reference**2 * weights.double()).sum(), wide, create_graph=True)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-4)
    [second] = torch.autograd.grad(gradient.sin().sum(), x)
    [wanted] = torch.autograd.grad(wanted.sin().sum(), wide)
    torch.testing.assert_close(second.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_onednn_multiplies(kind, monkeypatch):
    module = linear_map(kind)
    products.use_wide_products(module)
    monkeypatch.setattr(products, "_product", lambda x, weight, bias: torch.full((5, 7), 3.0))
    assert torch.equal(module(torch.randn(5, 12)), torch.full((5, 7), 3.0))


def forbidden(x, weight, bias):
    raise AssertionError("oneDNN was asked")


def ways_around():
    def trained(module, x):
        module.requires_grad_(True)
        module(x).sum().backward()
        torch.testing.assert_close(module.weight.grad, x.sum(0).expand(7, 12))

    def float64(module, x):
        assert module.double()(x.double()).dtype is torch.float64

    def autocast(module, x):
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype is torch.bfloat16

    def small(module, x):
        products._MIN_PRODUCT = 5 * 12 * 7 + 1
        assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))

    def turned_off(module, x):
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))

    return [trained, float64, autocast, small, turned_off]


@pytest.mark.parametrize("way", ways_around(), ids=lambda way: way.__name__)
def test_what_torch_multiplies(way, monkeypatch):
    module = linear_map("linear")
    products.use_wide_products(module)
    monkeypatch.setattr(products, "_product", forbidden)
    way(module, torch.randn(5, 12))


def test_a_copy_multiplies_with_its_own_weight():
    module = linear_map("linear")
    products.use_wide_products(module)
    other = copy.deepcopy(module)
    other.weight.zero_()
    x = torch.randn(5, 12)
    assert torch.equal(other(x), other.bias.expand(5, 7))
    torch.testing.assert_close(module(x).double(), expected(module, x), rtol=1e-5, atol=1e-5)


def test_a_forward_of_its_own_is_left_alone():
    module = linear_map("linear")
    module.forward = lambda x: x
    products.use_wide_products(module)
    x = torch.randn(5, 12)
    assert module(x) is x


def inexact(x, weight, bias):
    return 1.01 * x @ weight.T


def missing(x, weight, bias):
    raise AttributeError("no such operator")


@pytest.mark.parametrize(("product", "words"), [(inexact, "differ by 1.0e-02"), (missing, "no such operator")])
def test_a_wrong_product_is_not_used(product, words, monkeypatch):
    monkeypatch.setattr(products, "_product", product)
    module = linear_map("linear")
    with pytest.warns(UserWarning, match=words):
        products.use_wide_products(module)
    assert "forward" not in vars(module)


def test_language_models_use_onednn_products():
    model = language_model("llama")
    maps = [module for module in model.model.modules() if type(module) is nn.Linear]
    assert maps
    assert all("forward" in vars(module) for module in maps)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_says_the_same(family):
    model = language_model(family).model
    ids = torch.randint(3, 200, (2, 9))
    wide = model(ids).logits
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(wide, model(ids).logits, rtol=1e-4, atol=1e-4)
