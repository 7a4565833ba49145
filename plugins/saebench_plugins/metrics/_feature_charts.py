"""What charts of a value per true feature share: panels with trained SAE and twins, sorted or against frequency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from saebench_core import ChartPanel, Observed, Series

_EXPLAINED = "reconstruction/explained_variance"
_QUANTILES = 101


class Line(NamedTuple):
    """A line of one cell.

    Attributes:
        x: places, the same in all cells of a panel.
        y: values.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]


Drawn = Callable[[Observed], Line]
"""How the line of a cell is drawn."""


def blocks(found: Sequence[Observed]) -> Iterator[list[Observed]]:
    """Yield the cells of each panel: those of a backbone, site, architecture and L0."""
    groups: dict[tuple[str, str, str, float | None], list[Observed]] = {}
    for seen in found:
        groups.setdefault((seen.backbone, seen.site, seen.architecture, seen.l0), []).append(seen)
    yield from groups.values()


def varied(block: Sequence[Observed]) -> bool:
    """Return whether some features of a panel fire more often than others."""
    return len(set(block[0].items["probability"])) > 1


def panel(
    block: Sequence[Observed], line: Drawn, levels: Mapping[str, float], start: Drawn | None = None
) -> ChartPanel:
    """Return a panel with a line for each constraint, the mean over its seeds.

    Args:
        block: cells of one panel.
        line: how a cell's line is drawn.
        levels: lines across, by name.
        start: how the line of what is trained was, before it was.
    """
    first = block[0]
    series = []
    for name in dict.fromkeys(seen.constraint for seen in block):
        mine = [seen for seen in block if seen.constraint == name]
        series.append(_mean(name, [line(seen) for seen in mine], mine[0].trained))
    trained = [seen for seen in block if seen.trained]
    if start is not None and trained:
        drawn = [start(seen) for seen in trained if seen.constraint == trained[0].constraint]
        series.append(_mean("before training", drawn, trained=False))
    l0 = "" if first.l0 is None else f" · L0 {first.l0:g}"
    title = f"{first.backbone} · {first.architecture}{l0}{_explained(trained)}"
    return ChartPanel(title, tuple(series), dict(levels))


def _explained(trained: Sequence[Observed]) -> str:
    """Tell what the first trained SAE explains, as the paper's figures do: its features may be elsewhere."""
    mine = [seen.scores for seen in trained if seen.constraint == trained[0].constraint]
    told = [scores[_EXPLAINED] for scores in mine if _EXPLAINED in scores]
    return f" · {trained[0].constraint} explains {fmean(told):.3f}" if told else ""


def sorted_values(column: str) -> Drawn:
    """Return how to draw the values of all features, the largest first."""

    def line(seen: Observed) -> Line:
        shares = np.linspace(0.0, 1.0, _QUANTILES)
        values = np.quantile(np.asarray(seen.items[column], dtype=float), 1.0 - shares)
        return Line(tuple(float(share) for share in shares), tuple(float(value) for value in values))

    return line


def by_frequency(column: str, threshold: float | None = None) -> Drawn:
    """Return how to draw means over groups by frequency: of the values, or of whether they are above a threshold."""

    def line(seen: Observed) -> Line:
        group = np.asarray(seen.items["frequency_group"])
        probability = np.asarray(seen.items["probability"], dtype=float)
        values = np.asarray(seen.items[column], dtype=float)
        values = values if threshold is None else values > threshold
        present = [group == number for number in sorted(set(group.tolist()))]
        x = [float(np.exp(np.log(probability[own]).mean())) for own in present]
        return Line(tuple(x), tuple(float(values[own].mean()) for own in present))

    return line


def _mean(name: str, lines: Sequence[Line], trained: bool) -> Series:
    """Return the mean line over seeds; the places are the backbone's and the same for all."""
    y = np.mean([line.y for line in lines], axis=0)
    return Series(name, lines[0].x, tuple(float(value) for value in y), trained)
