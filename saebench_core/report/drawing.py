"""Geometry of charts: where lines, marks, ticks and labels lie in a panel's picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report.figures import Axis, Tick, axis_of
from saebench_core.report.words import number

__all__ = ["DrawnPanel", "drawn"]

LEFT, RIGHT, TOP, BOTTOM = 52, 420, 12, 236
LABEL_GAP = 14.0
STYLES = 6
"""Line styles of the page; more series than that share them, and the labels tell them apart."""
MARKED = 24
"""Longest line whose places are marked."""


class Mark(NamedTuple):
    """A value at a place, with its spread."""

    x: float
    y: float
    low: float
    high: float
    title: str


class Line(NamedTuple):
    """One series."""

    label: str
    label_y: float
    trained: bool
    style: int
    path: str
    marks: tuple[Mark, ...]


class Level(NamedTuple):
    """A line across."""

    name: str
    y: float
    text: str


@final
@dataclass(frozen=True)
class DrawnPanel:
    """One panel's picture."""

    title: str
    summary: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    levels: tuple[Level, ...]


def drawn(chart: Chart) -> list[DrawnPanel]:
    """Return the pictures of a chart's panels, all on one scale; none where there is no value."""
    every = [series for panel in chart.panels for series in panel.series if series.x]
    if not every:
        return []
    levels = [value for panel in chart.panels for value in panel.levels.values()]
    up = axis_of([end for series in every for end in _ends(series)] + levels, BOTTOM, TOP)
    places = [_scaled(chart, x) for series in every for x in series.x]
    low, high = min(places), max(places)
    across = Axis(low, max(high, low + 1e-9 * max(1.0, abs(low))), LEFT + 14, RIGHT - 14)
    return [_panel(chart, panel, across, up) for panel in chart.panels if any(series.x for series in panel.series)]


def _ends(series: Series) -> list[float]:
    spread = series.spread or (0.0,) * len(series.y)
    return [y + sign * s for y, s in zip(series.y, spread, strict=True) for sign in (-1, 1)]


def _scaled(chart: Chart, x: float) -> float:
    return math.log10(x) if chart.x_log else x


def _panel(chart: Chart, panel: ChartPanel, across: Axis, up: Axis) -> DrawnPanel:
    twins = list(dict.fromkeys(one.label for other in chart.panels for one in other.series if not one.trained))
    lines = [
        _line(chart, series, 0 if series.trained else 1 + twins.index(series.label) % (STYLES - 1), across, up)
        for series in panel.series
        if series.x
    ]
    ends = ", ".join(f"{series.label} {number(series.y[-1])}" for series in panel.series if series.x)
    return DrawnPanel(
        panel.title,
        f"{chart.y_label} against {chart.x_label}, {panel.title}; last values: {ends}",
        chart.x_label,
        chart.y_label,
        tuple(_spread_labels(lines)),
        _x_ticks(chart, panel, across),
        up.ticks(),
        tuple(Level(name, up.place(value), number(value)) for name, value in panel.levels.items()),
    )


def _line(chart: Chart, series: Series, style: int, across: Axis, up: Axis) -> Line:
    points = [(across.place(_scaled(chart, x)), up.place(y)) for x, y in zip(series.x, series.y, strict=True)]
    path = " ".join(f"{'L' if place else 'M'}{x} {y}" for place, (x, y) in enumerate(points))
    marks = tuple(_mark(chart, series, index, point, up) for index, point in enumerate(points))
    return Line(
        series.label,
        points[-1][1],
        series.trained,
        style,
        "" if chart.x_names else path,
        marks if len(marks) <= MARKED else (),
    )


def _mark(chart: Chart, series: Series, index: int, point: tuple[float, float], up: Axis) -> Mark:
    x, y = series.x[index], series.y[index]
    spread = series.spread[index] if series.spread else 0.0
    where = chart.x_names[int(x)] if chart.x_names else f"{chart.x_label} {x:g}"
    title = series.notes[index] if series.notes else f"{series.label}, {where}: {number(y)}"
    return Mark(*point, up.place(y - spread), up.place(y + spread), title)


def _x_ticks(chart: Chart, panel: ChartPanel, across: Axis) -> tuple[Tick, ...]:
    """Return names, powers of ten, every place where they are few, or round numbers."""
    if chart.x_names:
        return tuple(Tick(across.place(index), name) for index, name in enumerate(chart.x_names))
    places = sorted({x for series in panel.series for x in series.x})
    if len(places) <= 7:
        return tuple(Tick(across.place(_scaled(chart, x)), f"{x:g}") for x in places)
    if chart.x_log:
        powers = range(math.ceil(across.low - 1e-9), math.floor(across.high + 1e-9) + 1)
        if len(powers) > 1:
            return tuple(Tick(across.place(power), f"{10.0**power:g}") for power in powers)
        return tuple(Tick(across.place(_scaled(chart, x)), f"{x:g}") for x in (places[0], places[-1]))
    return across.ticks()


def _spread_labels(lines: Sequence[Line]) -> list[Line]:
    """Move the labels at the lines' ends apart, top to bottom."""
    moved: list[Line] = []
    for line in sorted(lines, key=lambda line: line.label_y):
        above = moved[-1].label_y + LABEL_GAP if moved else line.label_y
        moved.append(line._replace(label_y=max(line.label_y, above)))
    return moved
