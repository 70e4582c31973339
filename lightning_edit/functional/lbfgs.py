"""Limited-memory BFGS that is told the values of the points it asks for, so that many searches can share passes."""

from __future__ import annotations

import torch
from torch import Tensor

_SUFFICIENT = 1e-4
"""Share of the decrease that the gradient promises which a step has to bring (Armijo)."""


class LimitedMemoryBFGS:
    """Minimises a function of a vector within a ball, one evaluation at a time.

    Quasi-Newton steps d = -H g with H from the last pairs (s, y) of steps and changes of the gradient (Nocedal 1980),
    shortened by interpolation where they do not lower the loss enough, and projected onto the ball around the origin.
    Where the projected step leads uphill, which happens on the ball's surface, H is forgotten.

    Args:
        start: (D) first point.
        first_step: Length of the first step, before anything is known of the curvature.
        radius: Radius of the ball.
        memory: Pairs that are kept.
    """

    def __init__(self, start: Tensor, first_step: float, radius: float, memory: int = 10) -> None:
        self.point = start.clone()
        """(D) where the function is to be evaluated next."""
        self.best = self.point
        """(D) the best point so far."""
        self.best_loss = float("inf")
        self._first_step, self._radius, self._memory = first_step, radius, memory
        self._gradient: Tensor | None = None
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._direction = torch.zeros_like(start)
        self._length = 1.0

    def tell(self, loss: float, gradient: Tensor) -> None:
        """Takes the value and the (D) gradient at :attr:`point`, and chooses the next point."""
        if self._gradient is not None and not self._is_lower(loss):
            self._shorten(loss)
        else:
            self._accept(loss, gradient)
        self.point = self._within(self.best + self._length * self._direction)
        if self._pairs and self._promised() >= 0:
            self._pairs = []
            self._direction, self._length = -self._times_inverse_hessian(self._known_gradient()), 1.0
            self.point = self._within(self.best + self._direction)

    def _known_gradient(self) -> Tensor:
        """The gradient at the best point, once there is one."""
        assert self._gradient is not None
        return self._gradient

    def _promised(self) -> float:
        """How much the gradient says that the step from the best point to the next one changes the loss."""
        return float(self._known_gradient() @ (self.point - self.best))

    def _is_lower(self, loss: float) -> bool:
        return loss <= self.best_loss + _SUFFICIENT * min(self._promised(), 0.0)

    def _accept(self, loss: float, gradient: Tensor) -> None:
        if self._gradient is not None:
            step, change = self.point - self.best, gradient - self._gradient
            # Only a positive curvature keeps H positive definite.
            if float(step @ change) > 1e-10 * float(step.norm() * change.norm()):
                self._pairs = [*self._pairs, (step, change)][-self._memory :]
        self.best, self.best_loss, self._gradient = self.point, loss, gradient
        self._direction, self._length = -self._times_inverse_hessian(gradient), 1.0

    def _times_inverse_hessian(self, gradient: Tensor) -> Tensor:
        """H g by the two-loop recursion; without pairs, a vector of the first step's length."""
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
        """The minimum of the parabola through what is known along the step, between a tenth and half of it."""
        promised = self._promised()
        curvature = loss - self.best_loss - promised
        factor = -promised / (2 * curvature) if curvature > 0 else 0.5
        self._length *= min(max(factor, 0.1), 0.5)

    def _within(self, point: Tensor) -> Tensor:
        norm = float(point.norm())
        return point if norm <= self._radius else point * (self._radius / norm)
