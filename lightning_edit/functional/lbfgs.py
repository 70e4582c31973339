"""Limited-memory BFGS with an ask-and-tell interface, so that many searches can share forward passes."""

from __future__ import annotations

import torch
from torch import Tensor

_ARMIJO = 1e-4
"""Share of the predicted decrease that a step must achieve (Armijo)."""


class LimitedMemoryBFGS:
    """Minimises a function of a vector within a ball, one evaluation at a time.

    Takes quasi-Newton steps d = -H g with H from the last pairs (s, y) of steps and gradient changes (Nocedal 1980).
    Steps that do not lower the loss enough are shortened by interpolation, and projected onto the ball around the
    origin. If the projected step leads uphill, which happens on the ball's surface, H is reset.

    Args:
        start: (D) first point.
        first_step: Length of the first step, when the curvature is unknown.
        radius: Radius of the ball.
        memory: Number of pairs kept.
    """

    def __init__(self, start: Tensor, first_step: float, radius: float, memory: int = 10) -> None:
        self.point = start.clone()
        """(D) point at which to evaluate the function next."""
        self.best = self.point
        """(D) best point so far."""
        self.best_loss = float("inf")
        self._first_step, self._radius, self._memory = first_step, radius, memory
        self._gradient: Tensor | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._direction = torch.zeros_like(start)
        self._length = 1.0

    def tell(self, loss: float, gradient: Tensor) -> None:
        """Takes the loss and its (D) gradient at :attr:`point`, and chooses the next point."""
        if self._gradient is not None and not self._is_lower(loss):
            self._shorten(loss)
        else:
            self._accept(loss, gradient)
        self.point = self._project(self.best + self._length * self._direction)
        if self._pairs and self._predicted_change() >= 0:
            self._pairs = []
            self._direction, self._length = -self._times_inverse_hessian(self._known_gradient()), 1.0
            self.point = self._project(self.best + self._direction)

    def _known_gradient(self) -> Tensor:
        """The gradient at the best point, once there is one."""
        assert self._gradient is not None
        return self._gradient

    def _predicted_change(self) -> float:
        """Predicts, from the gradient, the change of the loss from the best point to the next one."""
        return float(self._known_gradient() @ (self.point - self.best))

    def _is_lower(self, loss: float) -> bool:
        return loss <= self.best_loss + _ARMIJO * min(self._predicted_change(), 0.0)

    def _accept(self, loss: float, gradient: Tensor) -> None:
        if self._gradient is not None:
            step, change = self.point - self.best, gradient - self._gradient
            # Only a positive curvature keeps H positive definite.
            if float(step @ change) > 1e-10 * float(step.norm() * change.norm()):
                self._pairs = [*self._pairs, (step, change)][-self._memory :]
        self.best, self.best_loss, self._gradient = self.point, loss, gradient
        self._direction, self._length = -self._times_inverse_hessian(gradient), 1.0

    def _times_inverse_hessian(self, gradient: Tensor) -> Tensor:
        """Computes H g by the two-loop recursion; without pairs, a vector of the first step's length."""
        if not self._pairs:
            return gradient * (self._first_step / float(gradient.norm().clamp(min=1e-12)))
        product, weights = gradient.clone(), []
        for step, change in reversed(self._pairs):
            weight = float(step @ product) / float(step @ change)
            weights.append(weight)
            product -= weight * change
        step, change = self._pairs[-1]
        product *= float(step @ change) / float(change @ change)
        for (step, change), weight in zip(self._pairs, reversed(weights), strict=True):
            product += (weight - float(change @ product) / float(step @ change)) * step
        return product

    def _shorten(self, loss: float) -> None:
        """Shortens the step to the minimum of an interpolating parabola, between a tenth and half of its length."""
        predicted = self._predicted_change()
        curvature = loss - self.best_loss - predicted
        factor = -predicted / (2 * curvature) if curvature > 0 else 0.5
        self._length *= min(max(factor, 0.1), 0.5)

    def _project(self, point: Tensor) -> Tensor:
        norm = float(point.norm())
        return point if norm <= self._radius else point * (self._radius / norm)
