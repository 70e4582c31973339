"""Half precision keeps second moments positive definite, and their inverse directions."""

import pytest
import torch

from lightning_edit.functional.packed_moments import pack_moment, unpack_moment


def _moment(size: int, spread: float) -> torch.Tensor:
    """A moment with a dominant mean, eigenvalues over three and scales over ``spread`` orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0, spread, size, dtype=torch.float64)
    return scales[:, None] * (basis * torch.logspace(0, -3, size, dtype=torch.float64) @ basis.T) * scales


def test_a_moment_comes_back_with_its_inverse_directions():
    moment = _moment(64, 4.0)
    scale, triangle = pack_moment(moment)
    assert (scale.dtype, triangle.dtype, triangle.shape) == (torch.float32, torch.float16, (64 * 65 // 2,))
    back = unpack_moment(scale, triangle).double()
    correlation = (back - moment).abs() / moment.diagonal().sqrt() / moment.diagonal().sqrt()[:, None]
    assert 0 < float(correlation.max()) < 1e-3
    keys = torch.linalg.cholesky(moment) @ torch.randn(64, 20, dtype=torch.float64)
    expected, directions = torch.linalg.solve(moment, keys), torch.linalg.solve(back, keys)
    assert float((directions - expected).norm() / expected.norm()) < 2e-3


def test_it_stays_positive_definite_where_rounding_the_moment_does_not():
    # Two nearly parallel directions: their correlation rounds to 1 in half precision.
    moment = torch.eye(3, dtype=torch.float64)
    moment[0, 1] = moment[1, 0] = 1 - 1e-5
    assert torch.linalg.cholesky_ex(moment.half().double())[1] > 0
    back = unpack_moment(*pack_moment(moment)).double()
    assert torch.linalg.cholesky_ex(back)[1] == 0
    torch.testing.assert_close(torch.linalg.det(back), torch.linalg.det(moment), rtol=0.1, atol=0)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="not positive definite"):
        pack_moment(torch.ones(3, 3))
    with pytest.raises(ValueError, match="5 entries does not belong to 3 scales"):
        unpack_moment(torch.ones(3), torch.ones(5))
