"""What moves the weights of penalties in training: towards the target L0, and across changes of a penalty's form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, cast, final, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from saebench_core.objectives import Objective, Step

__all__ = ["Continuity", "L0Controller", "Staged", "State", "Steering"]

State = dict[str, object]
"""Plain numbers, lists and dictionaries of them, as JSON keeps them."""

_REACH: Final = 15.0
"""How far log(multiplier) can move in a whole training."""
_FASTEST: Final = 0.02
_LOOK_AHEAD: Final = (500.0, 1 / 7.5)
_SMOOTHING: Final = 0.02
_BOUNDS: Final = (0.01, 100.0)
_FROZEN_SHARE: Final = 0.05
_RECENT: Final = 10


@final
@dataclass
class L0Controller:
    """Multiplies a penalty so that the mean L0 meets its target.

    ``log(multiplier)`` moves by ``rate * tanh(gain e)``, where e is the smoothed ``log(L0 / target)`` as its slope
    foretells it, and rests at the end. The look-ahead is what keeps it from swinging: L0 follows the multiplier
    by hundreds of steps, for weights have to move first. (The rule published with SynthSAEBench,
    arXiv 2602.14687, has the same parts without a foretold error, and swings in short trainings.)

    Attributes:
        l0: target.
        steps: steps of the whole training; rate and look-ahead scale with it.
        gain: multiplies e.
        multiplier: current value.
        error: smoothed ``log(L0 / target)``, None before the first step.
        slope: smoothed change of the error a step.
    """

    l0: float
    steps: int
    gain: float = 1.0
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
        change = min(_FASTEST, _REACH / self.steps) * math.tanh(self.gain * foretold)
        self.multiplier = min(_BOUNDS[1], max(_BOUNDS[0], self.multiplier * math.exp(change)))

    def state(self) -> State:
        """Return what changes in training."""
        return {"multiplier": self.multiplier, "error": self.error, "slope": self.slope}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` has returned."""
        self.multiplier = cast(float, state["multiplier"])
        self.error = cast("float | None", state["error"])
        self.slope = cast(float, state["slope"])


@runtime_checkable
class Staged(Protocol):
    """A penalty that changes its form in stages."""

    def stage(self, progress: float) -> int:
        """Return the number of changes up to a share of the training."""

    def at(self, step: Step, stage: int) -> Float[Tensor, ""]:
        """Return the penalty in the form of a stage."""


@final
@dataclass
class Continuity:
    """Multiplies a penalty so that a change of its form does not change its value (Karvonen et al. 2024).

    Attributes:
        term: the penalty.
        steps: steps of the whole training.
        multiplier: product of all ratios so far.
        recent: values of the last ten steps before a change, in the present form and in the next.
    """

    term: Staged
    steps: int
    multiplier: float = 1.0
    recent: list[list[float]] = field(default_factory=list)

    def update(self, step: int, view: Step) -> None:
        """Take in a batch at a step counted from 0; before a change, set the multiplier for the steps after it."""
        stage = self.term.stage(step / self.steps)
        near, upcoming = (self.term.stage((step + ahead) / self.steps) for ahead in (_RECENT, 1))
        if near == stage:
            return
        following = max(upcoming, stage + 1)
        self.recent.append([float(self.term.at(view, form).detach()) for form in (stage, following)])
        if upcoming == stage:
            return
        seen = self.recent if following == stage + 1 else self.recent[-1:]  # two changes at once were not foreseen
        present, after = (sum(pair[place] for pair in seen) for place in (0, 1))
        self.multiplier *= present / after if present > 0 and after > 0 else 1.0
        self.recent = []

    def state(self) -> State:
        """Return what changes in training."""
        return {"multiplier": self.multiplier, "recent": [list(pair) for pair in self.recent]}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` has returned."""
        self.multiplier = cast(float, state["multiplier"])
        self.recent = [list(pair) for pair in cast("list[list[float]]", state["recent"])]


@final
class Steering:
    """The controllers of an objective, as one thing that a checkpoint keeps.

    Attributes:
        l0: steers the controlled term, if there is one.
        continuity: by the name of the term.
    """

    def __init__(self, objective: Objective, steps: int) -> None:
        controlled = objective.controlled()
        self._controlled = controlled.term.name if controlled else None
        self.l0 = L0Controller(controlled.l0, steps, controlled.gain) if controlled else None
        self.continuity = {
            weighted.term.name: Continuity(weighted.term, steps)
            for weighted in objective.terms
            if isinstance(weighted.term, Staged)
        }

    def multipliers(self) -> dict[str, float]:
        """Return the multiplier of every steered term's weight, by its name."""
        found = {name: continuity.multiplier for name, continuity in self.continuity.items()}
        if self.l0 is not None and self._controlled is not None:
            found[self._controlled] = found.get(self._controlled, 1.0) * self.l0.multiplier
        return found

    def update(self, step: int, view: Step, l0: float | None = None) -> None:
        """Take in a batch at a step counted from 0.

        Args:
            step: its number.
            view: the batch, or a part of it.
            l0: mean number of active latents of the whole batch, where the view is a part.
        """
        if self.l0 is not None:
            self.l0.update(step, float((view.values.detach() > 0).sum()) / view.n_rows if l0 is None else l0)
        for continuity in self.continuity.values():
            continuity.update(step, view)

    def state(self) -> State:
        """Return what changes in training."""
        return {
            "l0": self.l0.state() if self.l0 is not None else None,
            "continuity": {name: continuity.state() for name, continuity in self.continuity.items()},
        }

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` has returned, for the same objective."""
        if self.l0 is not None:
            self.l0.load_state(cast("Mapping[str, object]", state["l0"]))
        kept = cast("Mapping[str, Mapping[str, object]]", state["continuity"])
        for name, continuity in self.continuity.items():
            continuity.load_state(kept[name])
