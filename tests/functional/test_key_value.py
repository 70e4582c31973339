"""The solvers of locate-then-edit methods against the published equations, in float64."""

import torch

from lightning_edit.functional.key_value import (
    constrained_update,
    least_squares_update,
    null_space,
    null_space_update,
)


def random_problem(size=9, number=3):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(size, number, generator=generator, dtype=torch.float64)
    factor = torch.randn(size, 2 * size, generator=generator, dtype=torch.float64)
    return keys, factor @ factor.T / size


def test_least_squares_is_the_published_solve():
    keys, moment = random_problem()
    expected = torch.linalg.solve(7.0 * moment + keys @ keys.T, keys)
    torch.testing.assert_close(least_squares_update(keys, torch.linalg.solve(moment, keys) / 7.0), expected)


def test_the_constrained_update_stores_every_value_exactly():
    keys, moment = random_problem()
    a = constrained_update(keys, torch.linalg.solve(moment, keys))
    torch.testing.assert_close(a.T @ keys, torch.eye(3, dtype=torch.float64))


def test_the_constrained_update_is_the_smallest_one():
    keys, moment = random_problem()
    residual = torch.randn(4, 3, dtype=torch.float64)
    update = residual @ constrained_update(keys, torch.linalg.solve(moment, keys)).T
    size = torch.trace(update @ moment @ update.T)
    for seed in range(5):
        noise = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = update + noise - noise @ keys @ torch.linalg.pinv(keys)
        torch.testing.assert_close(other @ keys, residual)
        assert torch.trace(other @ moment @ other.T) > size


def test_the_null_space_update_is_the_published_solve_and_leaves_the_rest_alone():
    keys, _ = random_problem()
    values = torch.tensor([5.0, 4, 3, 2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5], dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    moment = vectors @ values.diag() @ vectors.T
    basis = null_space(moment, 0.02)
    assert basis.shape == (9, 5)
    projector = basis @ basis.T
    earlier = torch.randn(9, 2, dtype=torch.float64)
    system = projector @ (keys @ keys.T + earlier @ earlier.T) + 10.0 * torch.eye(9, dtype=torch.float64)
    update = null_space_update(keys, basis, earlier @ earlier.T, 10.0)
    torch.testing.assert_close(update, torch.linalg.solve(system, projector @ keys))
    alone = torch.linalg.solve(projector @ keys @ keys.T + 10.0 * torch.eye(9, dtype=torch.float64), projector @ keys)
    torch.testing.assert_close(null_space_update(keys, basis, None, 10.0), alone)
    preserved = vectors[:, :4]
    assert float((update.T @ preserved).abs().max()) < 1e-12
