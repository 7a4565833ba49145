"""Geometry of a score against L0, one line a constraint, where a sweep has several L0 targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from saebench_core.report.figures import Axis, Tick, axis_of
from saebench_core.report.tables import Comparison, Entry, ScoreRow
from saebench_core.report.words import entry_text, number

__all__ = ["LinePanel", "line_panels"]

LEFT, RIGHT, TOP, BOTTOM = 52, 420, 12, 236
LABEL_GAP = 14.0
STYLES = 6
"""Line styles of the page; more constraints than that share them, and the labels tell them apart."""


class Mark(NamedTuple):
    """The mean at one L0, with its spread."""

    x: float
    y: float
    low: float
    high: float
    title: str


class Line(NamedTuple):
    """One constraint."""

    label: str
    label_y: float
    trained: bool
    style: int
    path: str
    marks: tuple[Mark, ...]


@final
@dataclass(frozen=True)
class LinePanel:
    """One backbone, site and architecture."""

    title: str
    summary: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    floor: float | None
    ceiling: float | None


def line_panels(found: Sequence[Comparison], score: str) -> list[LinePanel]:
    """Return a panel for each backbone, site and architecture that was trained at more than one L0."""
    groups: dict[tuple[str, str, str], list[tuple[float, ScoreRow]]] = {}
    for comparison in found:
        for row in comparison.rows:
            l0 = comparison.block.l0_target
            if l0 is not None and row.score == score and any(entry.values for entry in row.entries):
                groups.setdefault(comparison.block[:3], []).append((l0, row))
    several = {
        key: sorted(rows, key=lambda pair: pair[0]) for key, rows in groups.items() if len({l0 for l0, _ in rows}) > 1
    }
    if not several:
        return []
    axis = axis_of([row for rows in several.values() for _, row in rows], BOTTOM, TOP)
    return [_panel(key, rows, axis) for key, rows in several.items()]


def _panel(key: tuple[str, str, str], rows: Sequence[tuple[float, ScoreRow]], axis: Axis) -> LinePanel:
    backbone, site, architecture = key
    logs = [math.log(l0) if l0 > 0 else 0.0 for l0, _ in rows]
    across = Axis(logs[0], max(logs[-1], logs[0] + 1e-9), LEFT + 14, RIGHT - 14)
    places = {l0: across.place(log) for (l0, _), log in zip(rows, logs, strict=True)}
    names = list(dict.fromkeys(entry.constraint for _, row in rows for entry in row.entries))
    lines = [_line(name, index, rows, places, axis) for index, name in enumerate(names)]
    score, last = rows[0][1].score, rows[-1][1]
    title = f"{backbone} / {site} · {architecture}"
    return LinePanel(
        title,
        f"{score} against L0, {title}; at L0 {rows[-1][0]:g}: "
        + ", ".join(f"{entry.constraint} {number(entry.mean)}" for entry in last.entries),
        tuple(_spread_labels([line for line in lines if line.marks])),
        tuple(Tick(x, f"{l0:g}") for l0, x in places.items()),
        axis.ticks(),
        None if last.floor is None else axis.place(last.floor),
        None if last.ceiling is None else axis.place(last.ceiling),
    )


def _line(
    name: str, index: int, rows: Sequence[tuple[float, ScoreRow]], places: dict[float, float], axis: Axis
) -> Line:
    entries = [(l0, entry) for l0, row in rows for entry in row.entries if entry.constraint == name]
    marks = tuple(_mark(places[l0], l0, entry, axis) for l0, entry in entries if entry.values)
    path = " ".join(f"{'L' if place else 'M'}{mark.x} {mark.y}" for place, mark in enumerate(marks))
    end = marks[-1].y if marks else 0.0
    trained = any(entry.trained for _, entry in entries)
    return Line(name, end, trained, 0 if trained else 1 + (index - 1) % (STYLES - 1), path, marks)


def _mark(x: float, l0: float, entry: Entry, axis: Axis) -> Mark:
    mean, spread = entry.mean or 0.0, entry.sd or 0.0
    title = f"{entry.constraint}, L0 {l0:g}: {entry_text(entry)} (n={entry.n})"
    return Mark(x, axis.place(mean), axis.place(mean - spread), axis.place(mean + spread), title)


def _spread_labels(lines: Sequence[Line]) -> list[Line]:
    """Move the labels at the lines' ends apart, top to bottom."""
    moved: list[Line] = []
    for line in sorted(lines, key=lambda line: line.label_y):
        above = moved[-1].label_y + LABEL_GAP if moved else line.label_y
        moved.append(line._replace(label_y=max(line.label_y, above)))
    return moved
