"""What a report shows beside scores: charts and texts that metrics make of items, and how far directions moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from saebench_core.api.opening import Opened
from saebench_core.errors import InputError, in_words
from saebench_core.interfaces.chart import Chart, Observed
from saebench_core.interfaces.excerpt import Gallery
from saebench_core.interfaces.metric import Metric
from saebench_core.report import drift_charts, is_trained
from saebench_core.results import CellRecord, CellResult
from saebench_core.training.drift import BINS, LOWEST

__all__ = ["charts_of", "galleries_of", "latents_to_rate"]

_T = TypeVar("_T")


def charts_of(opened: Opened, records: Sequence[CellRecord]) -> tuple[list[Chart], list[str]]:
    """Return the charts of what a workdir has, and why a metric could not draw its items."""
    charts, problems = _of_items(opened, records, "figures", lambda metric, found: metric.figures(found))
    drifts = [(cell, _drift(opened, cell)) for cell in _scored(records)]
    return charts + drift_charts(drifts, LOWEST, BINS), problems


def galleries_of(opened: Opened, records: Sequence[CellRecord]) -> tuple[list[Gallery], list[str]]:
    """Return the texts in which latents fire, of what a workdir has, and why a metric could not show its own."""
    return _of_items(opened, records, "galleries", lambda metric, found: metric.galleries(found))


def latents_to_rate(
    opened: Opened, records: Sequence[CellRecord], count: int, name: str | None = None
) -> tuple[list[Gallery], list[str]]:
    """Return so many random latents of each SAE for people to rate, and why a metric could not give its own.

    Args:
        opened: an open registry.
        records: its cells.
        count: latents of an SAE.
        name: the metric's entry; by default the first that gives any.

    Raises:
        InputError: if there is no such entry.
    """
    problems: list[str] = []
    names = [entry.name for entry in opened.registry.metrics]
    if name is not None and name not in names:
        raise InputError(f"--metric {name}: no metric is called so; there are {', '.join(names)}")
    for one in names if name is None else [name]:
        found, more = _of_items(opened, records, "to_rate", lambda metric, seen: metric.to_rate(seen, count), one)
        problems += more
        if found:
            return found, problems
    return [], problems


def _of_items(
    opened: Opened,
    records: Sequence[CellRecord],
    method: str,
    make: Callable[[Metric, Sequence[Observed]], Sequence[_T]],
    name: str | None = None,
) -> tuple[list[_T], list[str]]:
    """Let every metric that has this method of its own, or the one of this name, make something of its items."""
    made: list[_T] = []
    problems: list[str] = []
    for entry in opened.registry.metrics:
        if name not in {None, entry.name}:
            continue
        metric = cast(Metric, entry.instance)
        if getattr(type(metric), method) is getattr(Metric, method):
            continue  # most metrics draw nothing, and tables of items can be large
        found = [seen for cell in _scored(records) if (seen := _observed(opened, cell, entry.name)) is not None]
        try:
            made += make(metric, found)
        except Exception as error:  # a plugin may raise anything
            problems.append(f"{entry.name}: its {method} are left out: {in_words(error)}")
    return made, problems


def _scored(records: Sequence[CellRecord]) -> list[CellResult]:
    return [record.result for record in records if record.result.status in {"done", "failed"}]


def _observed(opened: Opened, cell: CellResult, metric: str) -> Observed | None:
    import pyarrow.parquet

    artifact = cell.artifacts.get(f"items/{metric}")
    if artifact is None:
        return None
    items = pyarrow.parquet.read_table(opened.workdir / artifact).to_pydict()
    names = (cell.backbone.name, cell.site, cell.architecture.name, cell.constraint.name)
    scores = {name: metric.value for name, metric in cell.metrics.items() if metric.value is not None}
    return Observed(*names, cell.l0_target, cell.seed, is_trained(cell), items, scores)


def _drift(opened: Opened, cell: CellResult) -> list[Mapping[str, Any]]:
    artifact = cell.artifacts.get("drift")
    if artifact is None:
        return []
    found: list[Mapping[str, Any]] = json.loads((opened.workdir / artifact).read_text(encoding="utf-8"))
    return found
