"""Charts of a sweep beyond its scores: those that metrics draw of their items, and how far directions moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from saebench_core.api.opening import Opened
from saebench_core.errors import in_words
from saebench_core.interfaces.chart import Chart, Observed
from saebench_core.interfaces.metric import Metric
from saebench_core.report import drift_charts, is_trained
from saebench_core.results import CellRecord, CellResult
from saebench_core.training.drift import BINS, LOWEST

__all__ = ["charts_of"]


def charts_of(opened: Opened, records: Sequence[CellRecord]) -> tuple[list[Chart], list[str]]:
    """Return the charts of what a workdir has, and why a metric could not draw its items."""
    cells = [record.result for record in records if record.result.status in {"done", "failed"}]
    charts: list[Chart] = []
    problems: list[str] = []
    for entry in opened.registry.metrics:
        metric = cast(Metric, entry.instance)
        if type(metric).figures is Metric.figures:
            continue  # most metrics draw nothing, and tables of items can be large
        found = [seen for cell in cells if (seen := _observed(opened, cell, entry.name)) is not None]
        try:
            charts += metric.figures(found)
        except Exception as error:  # a plugin may raise anything
            problems.append(f"{entry.name}: its figures are left out: {in_words(error)}")
    return charts + drift_charts([(cell, _drift(opened, cell)) for cell in cells], LOWEST, BINS), problems


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
