import pytest
import torch

from lightning_edit.functional.position_losses import (
    even_slices,
    kl_and_slope,
    nll_and_slope,
    position_losses,
    reverse_kl_and_slope,
)


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    head = torch.randn(23, 5, generator=generator, dtype=torch.float64)
    other = torch.randn(11, 23, generator=generator, dtype=torch.float64)
    ids = torch.randint(23, (11,), generator=generator)
    weights = torch.randn(11, generator=generator, dtype=torch.float64)
    return inputs, head, other, ids, weights


@pytest.mark.parametrize("at_once", [1, 3, 4, 11, 100])
@pytest.mark.parametrize("kind", ["nll", "kl", "reverse"])
def test_values_and_gradients_are_those_of_autograd_through_all_logits(parts, kind, at_once):
    inputs, head, other, ids, weights = parts
    # A head that is not linear, as with soft-capped logits.
    logits_of = lambda states: 3 * torch.tanh(states @ head.T / 3)  # noqa: E731
    expected_of = {
        "nll": lambda logits: torch.nn.functional.cross_entropy(logits, ids, reduction="none"),
        "kl": lambda logits: torch.nn.functional.kl_div(
            logits.log_softmax(-1), other.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1),
        "reverse": lambda logits: torch.nn.functional.kl_div(
            other.log_softmax(-1), logits.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1),
    }[kind]
    loss = {
        "nll": lambda logits, part, slope: nll_and_slope(logits, ids[part], slope),
        "kl": lambda logits, part, slope: kl_and_slope(other[part], logits, slope),
        "reverse": lambda logits, part, slope: reverse_kl_and_slope(other[part], logits, slope),
    }[kind]
    reference = inputs.clone().requires_grad_()
    expected = expected_of(logits_of(reference))
    (expected_gradient,) = torch.autograd.grad((weights * expected).sum(), reference)
    leaf = inputs.clone().requires_grad_()
    actual = position_losses(leaf, logits_of, loss, at_once)
    (gradient,) = torch.autograd.grad((weights * actual).sum(), leaf)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


def test_no_gradient_is_computed_where_none_is_needed(parts):
    inputs, head, _, ids, _ = parts
    asked = []

    def loss(logits, part, slope):
        asked.append(slope)
        return nll_and_slope(logits, ids[part], slope)

    with torch.no_grad():
        position_losses(inputs.clone().requires_grad_(), lambda states: states @ head.T, loss, 4)
    position_losses(inputs, lambda states: states @ head.T, loss, 4)
    assert asked
    assert not any(asked)


def test_no_positions_give_no_losses(parts):
    inputs, head, *_ = parts
    leaf = inputs[:0].clone().requires_grad_()
    losses = position_losses(leaf, lambda states: states @ head.T, lambda *_: pytest.fail("nothing to compute"), 4)
    assert losses.shape == (0,)
    assert torch.autograd.grad(losses.sum(), leaf)[0].shape == (0, 5)


@pytest.mark.parametrize(("count", "limit"), [(0, 3), (1, 3), (91, 85), (9, 3), (10, 3)])
def test_slices_are_even_and_cover_everything(count, limit):
    slices = list(even_slices(count, limit))
    assert [index for part in slices for index in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert not sizes or (max(sizes) <= limit and max(sizes) - min(sizes) <= 1)
