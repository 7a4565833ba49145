"""A chart as plain numbers: whoever has numbers says what is to be seen, the report draws it in its own style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from saebench_core.errors import PluginError

__all__ = ["Chart", "ChartPanel", "Observed", "Series"]


@final
@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: whose line it is, such as a constraint.
        x: places, ascending.
        y: values there.
        trained: whether nothing was held random; drawn as the one that others are compared with.
        spread: standard deviation of each value; empty for none.
        notes: text of each mark; empty for its numbers.
        hollow: whether each mark is drawn hollow, as what a flag speaks of; empty for none.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    trained: bool = False
    spread: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    hollow: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.spread, self.notes, self.hollow)
        if len(self.x) != len(self.y) or any(part and len(part) != len(self.x) for part in parts):
            raise PluginError(f"series {self.label!r}: {len(self.x)} places, {len(self.y)} values")
        if not all(math.isfinite(value) for value in (*self.x, *self.y, *self.spread)):
            raise PluginError(f"series {self.label!r}: places and values must be finite; leave out what is not")


@final
@dataclass(frozen=True)
class ChartPanel:
    """Lines on common axes.

    Attributes:
        title: what the panel is of.
        series: the lines.
        levels: values drawn as lines across, by name: ``floor``, ``ceiling``, ``threshold``.
    """

    title: str
    series: tuple[Series, ...]
    levels: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Chart:
    """Panels on one scale.

    Attributes:
        title: what is drawn.
        caption: one line on how to read it.
        x_label: what the places are, with unit.
        y_label: what the values are, with unit.
        panels: the panels.
        x_log: whether places are on a logarithmic scale; then they are above zero.
        x_names: names of the places 0, 1, 2 ... where they are no numbers; lines are then left out.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    panels: tuple[ChartPanel, ...]
    x_log: bool = False
    x_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        places = [x for panel in self.panels for series in panel.series for x in series.x]
        if self.x_log and any(x <= 0 for x in places):
            raise PluginError(f"chart {self.title!r}: places on a logarithmic scale must be above zero")
        if self.x_names and any(x not in range(len(self.x_names)) for x in places):
            raise PluginError(f"chart {self.title!r}: places must be numbers of the {len(self.x_names)} names, from 0")
        levels = [value for panel in self.panels for value in panel.levels.values()]
        if not all(math.isfinite(value) for value in levels):
            raise PluginError(f"chart {self.title!r}: levels must be finite")


@final
@dataclass(frozen=True)
class Observed:
    """One cell's per-item table of a metric, for its charts.

    Attributes:
        backbone: name of the backbone.
        site: the site.
        architecture: name of the architecture.
        constraint: name of the constraint.
        l0: target L0, or None where it is not known.
        seed: the seed.
        trained: whether nothing was held random.
        items: the table's columns.
        scores: the cell's numbers by ``metric/score``, of all metrics.
    """

    backbone: str
    site: str
    architecture: str
    constraint: str
    l0: float | None
    seed: int
    trained: bool
    items: Mapping[str, Sequence[Any]]
    scores: Mapping[str, float] = field(default_factory=dict)
