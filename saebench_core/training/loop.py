"""The lock-step loop: one stream of batches, every SAE of the group takes each step."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, final

from jaxtyping import Float
from torch import Tensor

from saebench_core.errors import is_interruption
from saebench_core.interfaces.context import Progress
from saebench_core.training.checkpoints import Kept, NoCheckpoints
from saebench_core.training.drift import drift_steps, drift_summary
from saebench_core.training.trainee import Trainee

__all__ = ["BatchStream", "Curve", "GroupOutcome", "Keeper", "train_group"]

_LOGGER: Final = logging.getLogger(__name__)
_CURVE_POINTS: Final = 200
_HELDOUT_SHARES: Final = tuple(share / 20 for share in range(1, 21))


class BatchStream(Protocol):
    """Batches in a fixed order, from any of them on.

    Attributes:
        total: rows of the whole training.
        batch_size: rows a batch.
        order_sha256: hash over the row numbers of all batches given or passed over so far.
        kept_rows: rows that windows of a streamed source were found to have; to know them saves reading them again.
    """

    total: int
    batch_size: int
    order_sha256: str
    kept_rows: dict[int, int]

    def batches(self, start: int = 0) -> Generator[Float[Tensor, "rows d_in"], None, None]:
        """Yield the batches from number ``start`` on."""

    def skip(self) -> None:
        """Follow the order to its end without reading a row."""


class Keeper(Protocol):
    """Keeps checkpoints."""

    def due(self) -> bool:
        """Say whether it is time to write."""

    def save(self, name: str, kept: Kept) -> None:
        """Write a checkpoint of an SAE."""

    def load(self, name: str) -> Kept | None:
        """Return the newest checkpoint of an SAE."""


@final
@dataclass
class Curve:
    """Training curve of one SAE.

    Attributes:
        points: numbers at a step.
        seconds: time of the SAE's own steps.
        heldout: explained variance on held-out rows by number of steps done.
        drift: how far directions have moved, at a few steps.
    """

    points: list[dict[str, object]] = field(default_factory=list)
    seconds: float = 0.0
    heldout: dict[int, float] = field(default_factory=dict)
    drift: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write one JSON object a line."""
        path.write_text("".join(json.dumps(point) + "\n" for point in self.points), encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """Return all of it as JSON keeps it."""
        heldout = [[step, value] for step, value in self.heldout.items()]
        return {"points": self.points, "seconds": self.seconds, "heldout": heldout, "drift": self.drift}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curve:
        """Return the curve that `state` was of."""
        heldout = {int(step): float(value) for step, value in state["heldout"]}
        return cls(list(state["points"]), float(state["seconds"]), heldout, list(state["drift"]))


@final
@dataclass(frozen=True)
class GroupOutcome:
    """What the loop ends with.

    Attributes:
        curves: by name of the SAE.
        failures: the error of every SAE that left the group.
        batch_order_sha256: hash of the row numbers of all batches.
    """

    curves: Mapping[str, Curve]
    failures: Mapping[str, Exception]
    batch_order_sha256: str


def train_group(
    trainees: Mapping[str, Trainee],
    stream: BatchStream,
    scale: float,
    heldout: Tensor,
    progress: Progress,
    label: str,
    keeper: Keeper | None = None,
) -> GroupOutcome:
    """Feed every batch to every SAE; one that fails leaves, the others go on.

    Each SAE sees the same batches as it would alone, and no state is shared, so it ends bit-equal. One that has a
    checkpoint takes its first step where that was written.

    Args:
        trainees: SAEs by name; they are changed in place.
        stream: batches in the order of the group's seed.
        scale: what activations are divided by.
        heldout: rows on which explained variance is followed, unscaled.
        progress: where to report.
        label: name of the work.
        keeper: keeps checkpoints; none by default.
    """
    group = _Group(trainees, stream, heldout / scale, keeper or NoCheckpoints())
    training = [name for name, trainee in trainees.items() if trainee.constraint.trains]
    first = min((group.done[name] for name in training), default=group.steps)
    if first >= group.steps:
        stream.skip()
        return GroupOutcome(group.curves, group.failures, stream.order_sha256)
    with closing(stream.batches(first)) as batches:
        for number, batch in enumerate(batches, first):
            x = batch / scale
            for name in training:
                if name not in group.failures and group.done[name] == number:
                    group.step(name, x, number)
            progress(label, number + 1, group.steps)
            if len(group.failures) == len(training):
                break
            if group.keeper.due() and number + 1 < group.steps:
                group.keep()
    return GroupOutcome(group.curves, group.failures, stream.order_sha256)


@final
class _Group:
    """The SAEs of a group, with what each has done so far."""

    def __init__(self, trainees: Mapping[str, Trainee], stream: BatchStream, heldout: Tensor, keeper: Keeper) -> None:
        self.trainees = trainees
        self.steps = stream.total // stream.batch_size
        self.rows = stream.batch_size
        self.kept_rows = stream.kept_rows
        self.heldout = heldout
        self.keeper = keeper
        self.curves = {name: Curve() for name in trainees}
        self.done = dict.fromkeys(trainees, 0)
        self.failures: dict[str, Exception] = {}
        self.marks = {max(1, round(share * self.steps)) for share in _HELDOUT_SHARES}
        self.every = max(1, self.steps // _CURVE_POINTS)
        self.drift = drift_steps(self.steps)
        for name, trainee in trainees.items():
            kept = keeper.load(name)
            if kept is not None:
                trainee.load_state(kept.tensors, kept.plain["trainee"])
                self.curves[name] = Curve.from_state(kept.plain["curve"])
                self.kept_rows.update({int(window): int(rows) for window, rows in kept.plain["kept_rows"]})
                self.done[name] = kept.step
            elif trainee.constraint.trains:
                self._note_drift(name, 0)

    def step(self, name: str, x: Tensor, number: int) -> None:
        """Take one step of one SAE; whatever its plugins raise is its own failure."""
        began, curve, trainee = time.perf_counter(), self.curves[name], self.trainees[name]
        try:
            trainee.step(x, number)
            self.done[name] = number + 1
            self._record(curve, trainee, number + 1)
            if number + 1 in self.drift:
                self._note_drift(name, number + 1)
        except Exception as error:  # a plugin may raise anything; the others must not suffer
            if is_interruption(error):
                raise KeyboardInterrupt from error
            self.failures[name] = error
        curve.seconds += time.perf_counter() - began

    def keep(self) -> None:
        """Write a checkpoint of every SAE that is still in the group."""
        kept_rows = [list(pair) for pair in self.kept_rows.copy().items()]  # a thread that reads ahead adds to it
        for name, trainee in self.trainees.items():
            if name not in self.failures and trainee.constraint.trains:
                tensors, plain = trainee.state()
                state = {"trainee": plain, "curve": self.curves[name].state(), "kept_rows": kept_rows}
                try:
                    self.keeper.save(name, Kept(self.done[name], tensors, state))
                except OSError as error:  # such as a full disk: the training itself needs no checkpoint
                    _LOGGER.warning("no checkpoint of %s at step %d: %s", name, self.done[name], error)

    def _note_drift(self, name: str, done: int) -> None:
        trainee, curve = self.trainees[name], self.curves[name]
        moved = drift_summary(trainee.sae, trainee.start, trainee.alive, done, done / self.steps)
        if done:  # before the first step nothing of a plugin has run in this group
            variance = curve.heldout[done] if done in curve.heldout else trainee.heldout_variance(self.heldout)
            moved |= {"explained_variance": variance} if math.isfinite(variance) else {}
        curve.drift.append(moved)

    def _record(self, curve: Curve, trainee: Trainee, done: int) -> None:
        values: dict[str, float] = {}
        if done in self.marks:
            values["heldout_explained_variance"] = curve.heldout[done] = trainee.heldout_variance(self.heldout)
        if done % self.every == 0 or done == 1 or done in self.marks:
            report = trainee.report
            values |= {
                "loss": report.loss,
                "l0": report.l0,
                "explained_variance": report.explained_variance,
                "dead_share": report.dead_share,
                "grad_norm": report.grad_norm,
                "lr": trainee.settings.lr * trainee.settings.lr_factor(done - 1),
            }
        if values:
            finite = {name: value for name, value in values.items() if value == value and abs(value) != float("inf")}
            now = time.time_ns() // 1_000_000
            curve.points.append({"step": done, "rows": done * self.rows, "time_ms": now, "values": finite})
