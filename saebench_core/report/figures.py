"""Geometry of the report's figures: a dot for each seed, a bar at the mean, lines at floor and ceiling.

The template draws it; colours, fonts and dark mode are the page's own, which no ready-made picture would follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from saebench_core.report.tables import Comparison, ScoreRow
from saebench_core.report.words import entry_notes, l0_text, number

__all__ = ["Axis", "Figure", "Panel", "Tick", "axis_of", "dot_figures"]

LABEL, PLOT, ROW, TOP, BOTTOM = 200, 380, 26, 8, 30


class Tick(NamedTuple):
    """A place on the axis, and how much lower its text stands: names that are wider than their room take turns."""

    x: float
    text: str
    lower: int = 0


class Dot(NamedTuple):
    """One seed."""

    x: float
    title: str


class Lane(NamedTuple):
    """One constraint."""

    y: float
    label: str
    trained: bool
    null: bool
    mean: float | None
    dots: tuple[Dot, ...]
    remark: str


@final
@dataclass(frozen=True)
class Panel:
    """One block of a score."""

    title: str
    summary: str
    width: int
    height: int
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    floor: Tick | None
    ceiling: Tick | None


@final
@dataclass(frozen=True)
class Figure:
    """One score over all blocks, on one axis."""

    score: str
    caption: str
    panels: tuple[Panel, ...]


class Axis(NamedTuple):
    """A linear scale from values to places."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where a value lies."""
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 2)

    def tick(self, value: float | None) -> Tick | None:
        """Return a labelled place, or None for no value."""
        return None if value is None else Tick(self.place(value), number(value))

    def ticks(self) -> tuple[Tick, ...]:
        """Return three to six round values."""
        raw = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return tuple(Tick(self.place(index * step), f"{index * step:.6g}") for index in range(first, last + 1))


def dot_figures(found: Sequence[Comparison], scores: Sequence[str]) -> list[Figure]:
    """Return a figure for each score that has values, in the given order."""
    figures = []
    for score in scores:
        rows = [(comparison, row) for comparison in found for row in comparison.rows if row.score == score]
        drawn = [(comparison, row) for comparison, row in rows if any(entry.values for entry in row.entries)]
        if drawn:
            axis = axis_of(_values(row for _, row in drawn), LABEL, LABEL + PLOT)
            panels = tuple(_panel(comparison, row, axis) for comparison, row in drawn)
            figures.append(Figure(score, _caption(drawn[0][1]), panels))
    return figures


def _caption(row: ScoreRow) -> str:
    better = {"higher": "higher is better", "lower": "lower is better", "none": "a description, no direction is better"}
    return f"{better[row.direction]}; unit: {row.unit}"


def _values(rows: Iterable[ScoreRow]) -> list[float]:
    """Return all values, floors and ceilings of some rows."""
    found: list[float] = []
    for row in rows:
        found += [value for entry in row.entries for value in entry.values.values()]
        found += [value for value in (row.floor, row.ceiling) if value is not None]
    return found


def axis_of(values: Sequence[float], start: float, end: float) -> Axis:
    """Return a scale on which all values have room."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.05 * abs(low) or 0.5
    return Axis(low - margin, high + margin, start, end)


def _panel(comparison: Comparison, row: ScoreRow, axis: Axis) -> Panel:
    block = comparison.block
    lanes = []
    for index, entry in enumerate(row.entries):
        dots = tuple(
            Dot(axis.place(value), f"{entry.constraint}, seed {seed}: {number(value, 4)}")
            for seed, value in entry.values.items()
        )
        notes = [] if entry.values else entry_notes(entry, len(comparison.seeds))
        mean = None if entry.mean is None else axis.place(entry.mean)
        y = TOP + ROW * (index + 0.5)
        lanes.append(Lane(y, entry.constraint, entry.trained, entry.valid_null, mean, dots, "; ".join(notes[:1])))
    title = f"{block.backbone} / {block.site} · {block.architecture} · {l0_text(block.l0_target)}"
    means = ", ".join(f"{entry.constraint} {number(entry.mean)}" for entry in row.entries if entry.values)
    return Panel(
        title,
        f"{row.score}, {title}: means {means}; floor {number(row.floor)}, ceiling {number(row.ceiling)}",
        LABEL + PLOT + 20,
        TOP + ROW * len(lanes) + BOTTOM,
        tuple(lanes),
        axis.ticks(),
        axis.tick(row.floor),
        axis.tick(row.ceiling),
    )
