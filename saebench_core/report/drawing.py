"""Geometry of charts: where lines, marks, ticks and labels lie in a panel's picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report.figures import Axis, Tick, axis_of
from saebench_core.report.words import number

__all__ = ["DrawnPanel", "drawn"]

LEFT, RIGHT, TOP, BOTTOM = 52, 420, 12, 236
WIDTH = 620
HEIGHT, LOWEST = 276.0, 262.0
"""Of a picture, and of the last label in it; more labels than there is room for make it higher."""
LABEL_GAP = 14.0
LETTER, NAME_GAP, NAME_ROW = 6.4, 6.0, 14
"""Width of a letter of a name below the axis, least room between two, height of their rows."""
COLOURS, DASHES = 5, 5
"""Colours of what is not trained, and patterns of lines: more series than pairs of both share them."""
MARKED = 24
"""Longest line whose places are marked."""

Role = tuple[str, bool]
"""A label, and whether it is trained."""
Style = tuple[int, int]
"""Colour and pattern."""


class Mark(NamedTuple):
    """A value at a place, with its spread."""

    x: float
    y: float
    low: float
    high: float
    title: str
    hollow: bool


class Line(NamedTuple):
    """One series."""

    label: str
    label_y: float
    trained: bool
    colour: int
    dash: int
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
    deeper: int
    """Height of the rows of names below the axis but the first."""
    height: float
    width: int = WIDTH


def drawn(chart: Chart, beside: Sequence[Chart] = ()) -> list[DrawnPanel]:
    """Return the pictures of a chart's panels, all on one scale; none where there is no value.

    Args:
        chart: the chart.
        beside: charts of the same page: a label looks the same in all of them.
    """
    every = [series for panel in chart.panels for series in panel.series if series.x]
    if not every:
        return []
    levels = [value for panel in chart.panels for value in panel.levels.values()]
    up = axis_of([end for series in every for end in _ends(series)] + levels, BOTTOM, TOP)
    places = [_scaled(chart, x) for series in every for x in series.x]
    low, high = min(places), max(places)
    inset = 44 if chart.x_names else 14  # a name is wider than a number
    across = Axis(low, max(high, low + 1e-9 * max(1.0, abs(low))), LEFT + inset, RIGHT - inset)
    styles = _styles([*beside, chart])
    kept = [panel for panel in chart.panels if any(series.x for series in panel.series)]
    return [_panel(chart, panel, styles, across, up) for panel in kept]


def _ends(series: Series) -> list[float]:
    spread = series.spread or (0.0,) * len(series.y)
    return [y + sign * s for y, s in zip(series.y, spread, strict=True) for sign in (-1, 1)]


def _scaled(chart: Chart, x: float) -> float:
    return math.log10(x) if chart.x_log else x


def _panel(chart: Chart, panel: ChartPanel, styles: Mapping[Role, Style], across: Axis, up: Axis) -> DrawnPanel:
    lines = _spread_labels(
        [_line(chart, series, styles[series.label, series.trained], across, up) for series in panel.series if series.x]
    )
    ends = ", ".join(f"{series.label} {number(series.y[-1])}" for series in panel.series if series.x)
    ticks = _x_ticks(chart, panel, across)
    deeper = max((tick.lower for tick in ticks), default=0)
    return DrawnPanel(
        panel.title,
        f"{chart.y_label} against {chart.x_label}, {panel.title}; last values: {ends}",
        chart.x_label,
        chart.y_label,
        tuple(lines),
        ticks,
        up.ticks(),
        tuple(Level(name, up.place(value), number(value)) for name, value in panel.levels.items()),
        deeper,
        max(HEIGHT + deeper, lines[-1].label_y + LABEL_GAP),
    )


def _styles(charts: Sequence[Chart]) -> dict[Role, Style]:
    """Return colour and pattern by label and role: one colour for what is trained, the others for the rest."""
    found: dict[Role, Style] = {}
    for trained in (True, False):
        panels = (panel for chart in charts for panel in chart.panels)
        every = (one for panel in panels for one in panel.series if one.trained == trained)
        for place, label in enumerate(dict.fromkeys(one.label for one in every)):
            turn = place // COLOURS
            found[label, trained] = (0, place % DASHES) if trained else (1 + place % COLOURS, (place + turn) % DASHES)
    return found


def _line(chart: Chart, series: Series, style: Style, across: Axis, up: Axis) -> Line:
    points = [(across.place(_scaled(chart, x)), up.place(y)) for x, y in zip(series.x, series.y, strict=True)]
    path = " ".join(f"{'L' if place else 'M'}{x} {y}" for place, (x, y) in enumerate(points))
    marks = tuple(_mark(chart, series, index, point, up) for index, point in enumerate(points))
    return Line(
        series.label,
        points[-1][1],
        series.trained,
        *style,
        "" if chart.x_names else path,
        marks if len(marks) <= MARKED else (),
    )


def _mark(chart: Chart, series: Series, index: int, point: tuple[float, float], up: Axis) -> Mark:
    x, y = series.x[index], series.y[index]
    spread = series.spread[index] if series.spread else 0.0
    where = chart.x_names[int(x)] if chart.x_names else f"{chart.x_label} {x:g}"
    title = series.notes[index] if series.notes else f"{series.label}, {where}: {number(y)}"
    return Mark(*point, up.place(y - spread), up.place(y + spread), title, bool(series.hollow) and series.hollow[index])


def _x_ticks(chart: Chart, panel: ChartPanel, across: Axis) -> tuple[Tick, ...]:
    """Return names, powers of ten, every place where they are few, or round numbers."""
    if chart.x_names:
        return _in_rows([Tick(across.place(index), name) for index, name in enumerate(chart.x_names)])
    places = sorted({x for series in panel.series for x in series.x})
    if len(places) <= 7:
        return tuple(Tick(across.place(_scaled(chart, x)), f"{x:g}") for x in places)
    if chart.x_log:
        powers = range(math.ceil(across.low - 1e-9), math.floor(across.high + 1e-9) + 1)
        if len(powers) > 1:
            return tuple(Tick(across.place(power), f"{10.0**power:g}") for power in powers)
        return tuple(Tick(across.place(_scaled(chart, x)), f"{x:g}") for x in (places[0], places[-1]))
    return across.ticks()


def _in_rows(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Put names in as few rows as they need to keep clear of each other."""

    def clear(one: Tick, other: Tick) -> bool:
        return other.x - one.x >= LETTER * (len(one.text) + len(other.text)) / 2 + NAME_GAP

    rows = next((rows for rows in range(1, len(ticks)) if all(map(clear, ticks, ticks[rows:]))), len(ticks))
    return tuple(tick._replace(lower=NAME_ROW * (index % rows)) for index, tick in enumerate(ticks))


def _spread_labels(lines: Sequence[Line]) -> list[Line]:
    """Move the labels at the lines' ends apart, top to bottom, and back up where they would leave the picture."""
    ordered = sorted(lines, key=lambda line: line.label_y)
    places: list[float] = []
    for line in ordered:
        places.append(max(line.label_y, places[-1] + LABEL_GAP) if places else line.label_y)
    last = max(LOWEST, TOP + LABEL_GAP * (len(ordered) - 1))
    for index in reversed(range(len(ordered))):
        places[index] = min(places[index], last - LABEL_GAP * (len(ordered) - 1 - index))
    return [line._replace(label_y=place) for line, place in zip(ordered, places, strict=True)]
