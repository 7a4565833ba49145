"""The controller that steers a penalty's weight until the mean L0 is the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

__all__ = ["L0Controller"]

_RATE = 3e-4
_SLOW = 0.01
_BOUNDS = (0.01, 100.0)
_FROZEN_SHARE = 0.1


@final
@dataclass
class L0Controller:
    """Multiplies a penalty (the rule published with SynthSAEBench, protocols 1.2), scaled to the budget.

    A running mean of the batch L0 and of its slope decide: the multiplier moves by ``gain * tanh(10 error)``,
    slower while L0 already moves towards the target, and rests for the last tenth of the steps.

    Attributes:
        l0: target.
        steps: steps of the whole training.
        multiplier: current value.
    """

    l0: float
    steps: int
    multiplier: float = 1.0
    mean: float | None = None
    slope: float = 0.0

    def update(self, step: int, batch_l0: float) -> None:
        """Take in a batch's mean L0 at a step counted from 0."""
        previous = batch_l0 if self.mean is None else self.mean
        weight = min(0.2, max(0.01, 50 / self.steps))  # a short training cannot wait for a slow mean
        self.mean = (1 - weight) * previous + weight * batch_l0
        self.slope = 0.95 * self.slope + 0.05 * (self.mean - previous)
        if step >= (1 - _FROZEN_SHARE) * self.steps:
            return
        error = (self.mean - self.l0) / self.l0
        towards = error * self.slope < 0
        # the published rate is for 200,000 steps; a shorter training must move as far in fewer
        rate = min(0.02, _RATE * max(1.0, 200_000 / self.steps))
        change = rate * (_SLOW if towards and abs(error) < 0.05 else 1.0) * math.tanh(10 * error)
        self.multiplier = min(_BOUNDS[1], max(_BOUNDS[0], self.multiplier * (1 + change)))
