"""The lock-step loop: one stream of batches, every SAE of the group takes each step."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from torch import Tensor

from saebench_core.activations import ShuffledRows
from saebench_core.interfaces.context import Progress
from saebench_core.training.trainee import Trainee

__all__ = ["Curve", "GroupOutcome", "train_group"]

_CURVE_POINTS: Final = 200
_HELDOUT_SHARES: Final = tuple(share / 20 for share in range(1, 21))


@final
@dataclass
class Curve:
    """Training curve of one SAE.

    Attributes:
        points: numbers at a step.
        seconds: time of the SAE's own steps.
        heldout: explained variance on held-out rows by number of steps done.
    """

    points: list[dict[str, object]] = field(default_factory=list)
    seconds: float = 0.0
    heldout: dict[int, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write one JSON object a line."""
        path.write_text("".join(json.dumps(point) + "\n" for point in self.points), encoding="utf-8")


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
    trainees: Mapping[str, Trainee], stream: ShuffledRows, scale: float, heldout: Tensor, progress: Progress, label: str
) -> GroupOutcome:
    """Feed every batch to every SAE; one that fails leaves, the others go on.

    Each SAE sees the same batches as it would alone, and no state is shared, so it ends bit-equal.

    Args:
        trainees: SAEs by name; they are changed in place.
        stream: batches in the order of the group's seed.
        scale: what activations are divided by.
        heldout: rows on which explained variance is followed, unscaled.
        progress: where to report.
        label: name of the work.
    """
    curves = {name: Curve() for name in trainees}
    failures: dict[str, Exception] = {}
    steps = stream.total // stream.batch_size
    marks = {max(1, round(share * steps)) for share in _HELDOUT_SHARES}
    every = max(1, steps // _CURVE_POINTS)
    heldout = heldout / scale
    if not any(trainee.constraint.trains for trainee in trainees.values()):
        stream.skip()
        return GroupOutcome(curves, failures, stream.order_sha256)
    for number, batch in enumerate(stream.batches()):
        x = batch / scale
        for name, trainee in trainees.items():
            if name in failures or not trainee.constraint.trains:
                continue
            began = time.perf_counter()
            try:
                trainee.step(x, number)
                _record(curves[name], trainee, number + 1, stream.batch_size, marks, every, heldout)
            except Exception as error:  # a plugin may raise anything; the others must not suffer
                failures[name] = error
            curves[name].seconds += time.perf_counter() - began
        progress(label, number + 1, steps)
        if len(failures) == len(trainees):
            break
    return GroupOutcome(curves, failures, stream.order_sha256)


def _record(
    curve: Curve, trainee: Trainee, done: int, batch_size: int, marks: set[int], every: int, heldout: Tensor
) -> None:
    values: dict[str, float] = {}
    if done in marks:
        values["heldout_explained_variance"] = curve.heldout[done] = trainee.heldout_variance(heldout)
    if done % every == 0 or done == 1 or done in marks:
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
        curve.points.append({"step": done, "rows": done * batch_size, "time_ms": now, "values": finite})
