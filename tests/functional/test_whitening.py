"""Whitening along principal directions, against the closed form."""

import pytest
import torch

from lightning_edit.functional.whitening import principal_whitening


def correlated_keys(number=400, size=12):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-2, 3, size, dtype=torch.float64)
    return (torch.randn(number, size, generator=generator, dtype=torch.float64) @ mixing + 2.0) * scales


def whitening_matrix(moment, rank):
    scale, basis, gains = principal_whitening(moment, rank)
    return (torch.eye(len(moment), dtype=torch.float64) + basis * gains @ basis.T) * scale


def test_leading_directions_get_variance_one_and_the_others_on_average():
    keys = correlated_keys()
    moment = keys.T @ keys / len(keys)
    z = keys @ whitening_matrix(moment, 4).T
    values = torch.linalg.eigvalsh(z.T @ z / len(z))
    assert int((values - 1).abs().lt(1e-9).sum()) == 4
    rest = values[(values - 1).abs() > 1e-9]
    torch.testing.assert_close(rest.mean(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0)


def test_all_directions_but_one_are_the_inverse_square_root_of_the_correlations():
    keys = correlated_keys()
    moment = keys.T @ keys / len(keys)
    deviation = moment.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(moment / deviation[:, None] / deviation)
    expected = vectors * values.rsqrt() @ vectors.T / deviation
    torch.testing.assert_close(whitening_matrix(moment, 11), expected, rtol=1e-8, atol=1e-8)


def test_too_few_vectors_are_refused():
    keys = correlated_keys(number=4)
    with pytest.raises(ValueError, match="span no more than 6 directions"):
        principal_whitening(keys.T @ keys / len(keys), 6)


def test_a_coordinate_that_is_always_zero_does_no_harm():
    moment = torch.diag(torch.tensor([4.0, 1.0, 0.0, 9.0], dtype=torch.float64))
    assert whitening_matrix(moment, 2).isfinite().all()
