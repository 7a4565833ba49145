"""The controller that steers a penalty's weight until the mean L0 is the target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

__all__ = ["L0Controller"]

_REACH: Final = 15.0
"""How far log(multiplier) can move in a whole training."""
_FASTEST: Final = 0.02
_LOOK_AHEAD: Final = (500.0, 1 / 7.5)
_SMOOTHING: Final = 0.02
_BOUNDS: Final = (0.01, 100.0)
_FROZEN_SHARE: Final = 0.05


@final
@dataclass
class L0Controller:
    """Multiplies a penalty so that the mean L0 meets its target.

    ``log(multiplier)`` moves by ``rate * tanh(e)``, where e is the smoothed ``log(L0 / target)`` as its slope
    foretells it, and rests at the end. The look-ahead is what keeps it from swinging: L0 follows the multiplier
    by hundreds of steps, for weights have to move first. (The rule published with SynthSAEBench,
    arXiv 2602.14687, has the same parts without a foretold error, and swings in short trainings.)

    Attributes:
        l0: target.
        steps: steps of the whole training; rate and look-ahead scale with it.
        multiplier: current value.
        error: smoothed ``log(L0 / target)``, None before the first step.
        slope: smoothed change of the error a step.
    """

    l0: float
    steps: int
    multiplier: float = 1.0
    error: float | None = None
    slope: float = 0.0

    def update(self, step: int, batch_l0: float) -> None:
        """Take in a batch's mean L0 at a step counted from 0."""
        now = math.log(max(batch_l0, 1e-3 * self.l0) / self.l0)
        weight = max(_SMOOTHING, min(0.2, 10 / self.steps))  # a short training cannot wait for a slow mean
        previous = now if self.error is None else self.error
        self.error = (1 - weight) * previous + weight * now
        self.slope = (1 - weight) * self.slope + weight * (self.error - previous)
        if step >= (1 - _FROZEN_SHARE) * self.steps:
            return
        longest, share = _LOOK_AHEAD
        foretold = self.error + min(longest, share * self.steps) * self.slope
        change = min(_FASTEST, _REACH / self.steps) * math.tanh(foretold)
        self.multiplier = min(_BOUNDS[1], max(_BOUNDS[0], self.multiplier * math.exp(change)))
