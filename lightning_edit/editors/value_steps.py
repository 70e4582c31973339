"""Optimisers of the value search: Adam and L-BFGS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_edit.functional.lbfgs import LimitedMemoryBFGS

ValueOptimizer = Literal["adam", "lbfgs"]

_FIRST_STEP = 1.0
"""Length of the first quasi-Newton step in units of |h|. On six facts, 0.3 and 2 took one to three more evaluations."""


class ValueSteps(ABC):
    """Optimises the changes δ of one request, at one or several places, each within a ball.

    Args:
        initial: (D) initial state h, by place.
        clamp_norm: Maximum of |δ|, as a multiple of |h|.
    """

    def __init__(self, initial: Mapping[str, Tensor], clamp_norm: float) -> None:
        self.radius = {place: clamp_norm * float(state.norm()) for place, state in initial.items()}
        self.parameters = {place: torch.zeros_like(state, requires_grad=True) for place, state in initial.items()}
        """δ at which to evaluate the loss, by place."""

    @abstractmethod
    def step(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """Takes a step after an evaluation.

        Args:
            loss: The loss at :attr:`parameters`.
            gradients: Its gradient, by place.
        """

    def result(self, loss: float) -> dict[str, Tensor]:
        """Returns the final δ, by place.

        Args:
            loss: The loss of the last evaluation.
        """
        return {place: parameter.detach() for place, parameter in self.parameters.items()}


class AdamSteps(ValueSteps):
    """Adam, as in all published settings; the result is the last δ that was evaluated.

    Args:
        initial: See :class:`ValueSteps`.
        clamp_norm: See :class:`ValueSteps`.
        learning_rate: Learning rate.
    """

    def __init__(self, initial: Mapping[str, Tensor], clamp_norm: float, learning_rate: float) -> None:
        super().__init__(initial, clamp_norm)
        self._optimizer = torch.optim.Adam(list(self.parameters.values()), lr=learning_rate)

    def step(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """See :meth:`ValueSteps.step`."""
        for place, parameter in self.parameters.items():
            parameter.grad = gradients[place]
        self._optimizer.step()
        with torch.no_grad():
            for place, parameter in self.parameters.items():
                if (norm := float(parameter.norm())) > self.radius[place]:
                    parameter.mul_(self.radius[place] / norm)


class QuasiNewtonSteps(ValueSteps):
    """Limited-memory BFGS, which needs fewer evaluations; the result is the best δ that was evaluated.

    Args:
        initial: See :class:`ValueSteps`; one place.
        clamp_norm: See :class:`ValueSteps`.
    """

    def __init__(self, initial: Mapping[str, Tensor], clamp_norm: float) -> None:
        super().__init__(initial, clamp_norm)
        [self._place] = initial
        first_step = _FIRST_STEP * float(initial[self._place].norm())
        self._search = LimitedMemoryBFGS(torch.zeros_like(initial[self._place]), first_step, self.radius[self._place])

    def step(self, loss: float, gradients: Mapping[str, Tensor]) -> None:
        """See :meth:`ValueSteps.step`."""
        self._search.tell(loss, gradients[self._place])
        self.parameters = {self._place: self._search.point.clone().requires_grad_(True)}

    def result(self, loss: float) -> dict[str, Tensor]:
        """See :meth:`ValueSteps.result`."""
        is_best = not loss > self._search.best_loss
        return super().result(loss) if is_best else {self._place: self._search.best.clone()}
