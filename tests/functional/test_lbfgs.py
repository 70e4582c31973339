"""Limited-memory BFGS, one evaluation at a time, against scipy and closed forms."""

import numpy
import pytest
import torch
from scipy.optimize import minimize

from lightning_edit.functional.lbfgs import LimitedMemoryBFGS


def minimised(function, search, evaluations):
    for _ in range(evaluations):
        point = search.point.clone().requires_grad_(True)
        loss = function(point)
        search.tell(float(loss.detach()), torch.autograd.grad(loss, point)[0])
    return search


def quadratic(size=20):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    hessian = basis * torch.logspace(0, 2, size, dtype=torch.float64) @ basis.T
    target = torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda x: 0.5 * (x - target) @ hessian @ (x - target), target


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_it_finds_the_minimum_of_a_quadratic():
    function, target = quadratic()
    search = minimised(function, LimitedMemoryBFGS(torch.zeros(20, dtype=torch.float64), 0.1, 100.0, memory=20), 60)
    torch.testing.assert_close(search.best, target, rtol=1e-4, atol=1e-4)


def test_it_needs_about_as_many_evaluations_as_scipy():
    start = torch.full((6,), -1.0, dtype=torch.float64)

    def with_gradient(x):
        point = torch.tensor(x, requires_grad=True)
        loss = rosenbrock(point)
        return float(loss.detach()), torch.autograd.grad(loss, point)[0].numpy()

    reference = minimize(with_gradient, start.numpy(), jac=True, method="L-BFGS-B", options={"maxcor": 10})
    assert reference.fun < 1e-6
    search = minimised(rosenbrock, LimitedMemoryBFGS(start, 1.0, 100.0), 2 * reference.nfev)
    assert search.best_loss < 1e-4
    assert numpy.allclose(search.best, 1, atol=0.05)


def test_it_stays_within_the_ball_and_finds_its_best_point():
    target = torch.tensor([3.0, 4.0], dtype=torch.float64)
    search = LimitedMemoryBFGS(torch.zeros(2, dtype=torch.float64), 1.0, 2.0)
    points = []
    for _ in range(15):
        points.append(search.point)
        search.tell(float((search.point - target).square().sum()), 2 * (search.point - target))
    assert max(float(point.norm()) for point in points) <= 2.0 + 1e-12
    torch.testing.assert_close(search.best, 2 * target / 5)


@pytest.mark.parametrize("radius", [0.75, 2.0, 4.0])
def test_it_goes_on_along_the_surface_of_the_ball(radius):
    """An anisotropic quadratic whose minimum lies outside; the reference is the Lagrangian's solution."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    hessian = basis * torch.logspace(0, 2, 40, dtype=torch.float64) @ basis.T
    target = torch.randn(40, generator=generator, dtype=torch.float64)

    def function(x):
        return 0.5 * (x - target) @ hessian @ (x - target)

    low, high = 0.0, 1e6
    for _ in range(200):
        weight = (low + high) / 2
        point = torch.linalg.solve(hessian + weight * torch.eye(40, dtype=torch.float64), hessian @ target)
        low, high = (weight, high) if float(point.norm()) > radius else (low, weight)
    optimum, start = float(function(point)), float(function(torch.zeros(40, dtype=torch.float64)))
    search = minimised(function, LimitedMemoryBFGS(torch.zeros(40, dtype=torch.float64), 1.0, radius), 40)
    assert search.best_loss - optimum < 0.02 * (start - optimum)


def test_it_keeps_no_more_pairs_than_asked():
    search = minimised(rosenbrock, LimitedMemoryBFGS(torch.full((4,), -1.0, dtype=torch.float64), 1.0, 100.0, 1), 20)
    assert len(search._pairs) <= 1


def test_the_loss_of_the_best_point_never_rises():
    search = LimitedMemoryBFGS(torch.full((4,), -1.0, dtype=torch.float64), 5.0, 100.0)
    losses = []
    for _ in range(40):
        minimised(rosenbrock, search, 1)
        losses.append(search.best_loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("gradient", [torch.zeros(3), torch.full((3,), 1e-20)])
def test_a_gradient_of_zero_does_no_harm(gradient):
    search = LimitedMemoryBFGS(torch.zeros(3), 1.0, 10.0)
    for _ in range(3):
        search.tell(1.0, gradient)
        assert search.point.isfinite().all()
