"""Factors of adapters against float64 singular value decompositions."""

import pytest
import torch

from lightning_edit.functional.adapters import compress, decompose, padded, truncation_error


def factors(rank, generator=None):
    generator = generator or torch.Generator().manual_seed(rank)
    a = torch.randn(20, rank, generator=generator, dtype=torch.float64)
    return a, torch.randn(rank, 12, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_compressing_keeps_the_product_and_finds_the_rank(rank):
    a, b = factors(rank)
    # The same product from factors of three times the rank.
    small_a, small_b = compress(torch.cat([a, 2 * a, -a], 1), torch.cat([b, b, 2 * b]))
    assert small_a.shape == (20, rank)
    torch.testing.assert_close(small_a @ small_b, a @ b)
    torch.testing.assert_close(small_a.norm(dim=0), small_b.norm(dim=1))


def test_truncation_is_optimal_and_reports_its_error():
    matrix = torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = decompose(matrix)
    torch.testing.assert_close(a @ b, matrix)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 4, 11):
        residual = (matrix - a[:, :rank] @ b[:rank]).norm() / matrix.norm()
        assert truncation_error(a, rank) == pytest.approx(float(residual))
        assert truncation_error(a, rank) == pytest.approx(float(values[rank:].norm() / values.norm()))
    assert truncation_error(a, 12) == 0


def test_padding_changes_nothing():
    a, b = factors(3)
    wide_a, wide_b = padded(a, b, 8)
    assert (wide_a.shape, wide_b.shape) == ((20, 8), (8, 12))
    torch.testing.assert_close(wide_a @ wide_b, (a @ b).float())


def test_a_change_of_nothing_has_rank_one():
    a, b = compress(torch.zeros(20, 4), torch.zeros(4, 12))
    assert (a.shape, b.shape) == ((20, 1), (1, 12))
    assert truncation_error(a, 1) == 0
