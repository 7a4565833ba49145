"""Results of the studies: what a workdir has, beside what is stored already."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from study_tables import LIMITS

from saebench_core.api import charts_of, open_registry
from saebench_core.report import comparisons
from saebench_core.report.lines import score_charts

DIGITS: Final = 6
KEPT_VERSIONS: Final = ("saebench-core", "torch", "scikit-learn")
Data = dict[str, Any]


def collect(registry: str, workdir: Path) -> Data:
    """Return the results of a registry that a page can ask for: scores of every cell, and charts."""
    opened = open_registry(registry, workdir)
    records = [record for record in opened.records() if record.result.status != "excluded"]
    done = [record for record in records if record.result.status == "done"]
    environment = opened.sweep().environment
    return {
        "registry": registry,
        "versions": {name: environment[name] for name in KEPT_VERSIONS if name in environment},
        "cells": [_row(record) for record in done],
        "order": [record.result.cell_id for record in records],
        "failed": [record.result.cell_id for record in records if record.result.status == "failed"],
        "limits": _limits([record.result for record in done]),
        "charts": {chart.title: _rounded(asdict(chart)) for chart in _charts(opened, done)},
    }


def _charts(opened: Any, done: Sequence[Any]) -> list[Any]:
    charts, problems = charts_of(opened, done)
    for problem in problems:
        sys.stderr.write(f"warning: {problem}\n")
    found = comparisons(done)
    return [*charts, *(chart for score in opened.registry.headline for chart in score_charts(found, done, score))]


def _row(record: Any) -> Data:
    result = record.result
    return {
        "id": result.cell_id,
        "backbone": result.backbone.name,
        "architecture": result.architecture.name,
        "constraint": result.constraint.name,
        "l0": result.l0_target,
        "seed": result.seed,
        "flags": list(result.flags),
        "steps": record.params.get("steps"),
        "seconds": round(sum(record.seconds.values()), 1),
        "scores": {
            name: _rounded(value.value) for name, value in sorted(result.metrics.items()) if value.value is not None
        },
    }


def _limits(results: Sequence[Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return floors and ceilings by backbone and score, where all cells of a backbone have the same."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for backbone in dict.fromkeys(result.backbone.name for result in results):
        mine = [result.metrics for result in results if result.backbone.name == backbone]
        found[backbone] = {limit: {} for limit in LIMITS}
        for limit, score in itertools.product(LIMITS, sorted({score for metrics in mine for score in metrics})):
            values = {getattr(metrics[score], limit) for metrics in mine if score in metrics}
            if len(values) == 1 and None not in values:
                found[backbone][limit][score] = _rounded(values.pop())
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def merged(found: Data, before: Data | None) -> Data:
    """Return what was found, with the cells of the same registry that only ``before`` has.

    A study may be run in pieces, on several machines. A cell counts as the same if its id, a hash of its configuration,
    is. Charts that were made of more cells than are there now stay as they were.
    """
    new = {row["id"]: row for row in found["cells"]}
    old = {row["id"]: row for row in before["cells"] if row["id"] not in new} if before else {}
    rows = {name: new.get(name) or old.get(name) for name in found["order"]}
    kept = [row for name, row in rows.items() if row and name not in new]
    failed = [name for name in found["failed"] if not rows[name]]
    sources = [(found["cells"], found["limits"]), *([(kept, before["limits"])] if before else [])]
    return {
        **{key: found[key] for key in ("registry", "versions")},
        "cells": [row for row in rows.values() if row],
        "failed": len(failed),
        "left": sum(not row for row in rows.values()) - len(failed),
        "limits": _common_limits(sources),
        "charts": {**found["charts"], **(before["charts"] if before and kept else {})},
    }


def _common_limits(sources: Sequence[tuple[Sequence[Data], Data]]) -> Data:
    """Return the limits that are the same in all sources whose cells have the score."""
    found: Data = {}
    for backbone in dict.fromkeys(row["backbone"] for rows, _ in sources for row in rows):
        found[backbone] = {limit: {} for limit in LIMITS}
        parts = [
            ({score for row in rows if row["backbone"] == backbone for score in row["scores"]}, limits.get(backbone))
            for rows, limits in sources
        ]
        for limit, score in itertools.product(LIMITS, sorted(set().union(*(scores for scores, _ in parts)))):
            values = {limits[limit].get(score) for scores, limits in parts if score in scores and limits}
            if len(values) == 1 and None not in values:
                found[backbone][limit][score] = values.pop()
    return found


def pruned(found: Data, charts: Set[str]) -> Data:
    """Return what was found, with those charts alone.

    Raises:
        KeyError: for a chart that there is not.
    """
    if missing := charts - set(found["charts"]):
        raise KeyError(f"charts: {sorted(missing)}; there are: {sorted(found['charts'])}")
    return {**found, "charts": {title: chart for title, chart in found["charts"].items() if title in charts}}


def stored(place: Path) -> Data:
    """Return what is stored of a preset."""
    found: Data = json.loads(place.read_text(encoding="utf-8"))
    return found


def store(place: Path, data: Data) -> None:
    """Store what was found of a preset."""
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    place.write_text(f"{text}\n", encoding="utf-8")
