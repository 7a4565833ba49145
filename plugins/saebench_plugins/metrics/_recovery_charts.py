"""Charts of feature recovery: every feature's best cosine, and recovery against frequency (paper figures 2, 3, 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from saebench_core import Chart, ChartPanel, Observed, Series

_QUANTILES = 101


class _Line(NamedTuple):
    x: tuple[float, ...]
    y: tuple[float, ...]


def recovery_charts(found: Sequence[Observed], threshold: float) -> list[Chart]:
    """Return the charts of a sweep, one panel for each backbone, architecture and L0."""
    panels = list(_blocks(found))
    varied = [block for block in panels if len(set(block[0].items["probability"])) > 1]
    charts = [
        Chart(
            "Best cosine of every true feature, sorted",
            "a feature is recovered above the dotted line",
            "share of features",
            "best cosine",
            tuple(_panel(block, _sorted_cosines, {"threshold": threshold}) for block in panels),
        )
    ]
    if varied:
        charts.append(
            Chart(
                "Recovery against firing probability",
                f"share of features with a best cosine above {threshold:g}, in groups of equal size by frequency",
                "firing probability",
                "share recovered",
                tuple(_panel(block, _by_frequency(threshold), {}) for block in varied),
                x_log=True,
            )
        )
        charts.append(
            Chart(
                "Best cosine against firing probability",
                "mean of groups of equal size by frequency; dotted: from where on a feature counts as recovered",
                "firing probability",
                "best cosine",
                tuple(_panel(block, _by_frequency(None), {"threshold": threshold}) for block in varied),
                x_log=True,
            )
        )
    return charts if panels else []


def _blocks(found: Sequence[Observed]) -> Iterator[list[Observed]]:
    groups: dict[tuple[str, str, str, float | None], list[Observed]] = {}
    for seen in found:
        groups.setdefault((seen.backbone, seen.site, seen.architecture, seen.l0), []).append(seen)
    yield from groups.values()


def _panel(block: Sequence[Observed], line: Callable[..., _Line], levels: dict[str, float]) -> ChartPanel:
    first = block[0]
    series = []
    for name in dict.fromkeys(seen.constraint for seen in block):
        mine = [seen for seen in block if seen.constraint == name]
        series.append(_mean(name, [line(seen, "best_cosine") for seen in mine], mine[0].trained))
    trained = [seen for seen in block if seen.trained]
    drawn = [line(seen, "best_cosine_at_start") for seen in trained if seen.constraint == trained[0].constraint]
    if drawn:
        series.append(_mean("before training", drawn, trained=False))
    l0 = "" if first.l0 is None else f" · L0 {first.l0:g}"
    return ChartPanel(f"{first.backbone} · {first.architecture}{l0}", tuple(series), levels)


def _mean(name: str, lines: Sequence[_Line], trained: bool) -> Series:
    """Return the mean line over seeds; the places are the backbone's and the same for all."""
    y = np.mean([line.y for line in lines], axis=0)
    return Series(name, lines[0].x, tuple(float(value) for value in y), trained)


def _sorted_cosines(seen: Observed, column: str) -> _Line:
    shares = np.linspace(0.0, 1.0, _QUANTILES)
    values = np.quantile(np.asarray(seen.items[column], dtype=float), 1.0 - shares)
    return _Line(tuple(float(share) for share in shares), tuple(float(value) for value in values))


def _by_frequency(threshold: float | None) -> Callable[[Observed, str], _Line]:
    """Return how to draw means over groups: of the values, or of whether they are above a threshold."""

    def line(seen: Observed, column: str) -> _Line:
        group = np.asarray(seen.items["frequency_group"])
        probability = np.asarray(seen.items["probability"], dtype=float)
        values = np.asarray(seen.items[column], dtype=float)
        values = values if threshold is None else values > threshold
        present = [group == number for number in sorted(set(group.tolist()))]
        x = [float(np.exp(np.log(probability[own]).mean())) for own in present]
        return _Line(tuple(x), tuple(float(values[own].mean()) for own in present))

    return line
