"""Results as flat rows and data frames: long with a row a cell and score, or wide with a row a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from saebench_core.report.words import number, plain
from saebench_core.results import CellRecord, CellResult, MetricValue

if TYPE_CHECKING:
    import pandas

__all__ = ["long_frame", "score_frame", "score_lines", "tidy", "wide_frame"]

_CELL: Final = {
    "cell_id": "string",
    "backbone": "string",
    "site": "string",
    "architecture": "string",
    "l0_target": "float64",
    "constraint": "string",
    "init": "string",
    "seed": "int64",
    "status": "string",
    "flags": "string",
}
_SCORE: Final = {
    "score": "string",
    "applies": "boolean",
    "reason": "string",
    "value": "float64",
    "floor": "float64",
    "ceiling": "float64",
    "n": "Int64",
    "direction": "string",
    "unit": "string",
    "reads": "string",
    "valid_null": "boolean",
    "metric_version": "Int64",
}
_MORE: Final = {"realised_l0": "float64", "alive_share": "float64", "error": "string"}


def _cell(result: CellResult) -> dict[str, Any]:
    return {
        "cell_id": result.cell_id,
        "backbone": result.backbone.name,
        "site": result.site,
        "architecture": result.architecture.name,
        "l0_target": result.l0_target,
        "constraint": result.constraint.name,
        "init": result.init,
        "seed": result.seed,
        "status": result.status,
        "flags": " ".join(result.flags),
    }


def _more(result: CellResult) -> dict[str, Any]:
    certificate = result.certificate or {}
    measured = {name: certificate.get(name) for name in ("realised_l0", "alive_share")}
    return {**_cell(result), **measured, "error": result.error}


def _score(name: str, metric: MetricValue) -> dict[str, Any]:
    return {"score": name, "applies": metric.status == "ok", **metric.model_dump(exclude={"status"})}


def tidy(records: Iterable[CellRecord], scores: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return one flat row a cell and score, nothing averaged: what a data frame or a CSV file is made of."""
    rows = []
    for record in records:
        result = record.result
        for name in scores if scores is not None else result.metrics:
            metric = result.metrics.get(name)
            if metric is not None:
                rows.append(_cell(result) | _score(name, metric))
    return rows


def long_frame(records: Sequence[CellRecord]) -> pandas.DataFrame:
    """Return one row a cell and score; a cell without scores has one row, whose score is missing."""
    rows: list[dict[str, Any]] = []
    for record in records:
        scores = tidy([record]) or [{}]
        rows += [_more(record.result) | row for row in scores]
    return _frame(rows, _CELL | _SCORE | _MORE)


def wide_frame(records: Sequence[CellRecord]) -> pandas.DataFrame:
    """Return one row a cell; each score has a column, in which what does not apply or is not there is missing."""
    names = list(dict.fromkeys(name for record in records for name in record.result.metrics))
    rows = [
        _more(record.result) | {name: metric.value for name, metric in record.result.metrics.items()}
        for record in records
    ]
    return _frame(rows, _CELL | _MORE | dict.fromkeys(names, "float64"))


def score_frame(scores: Mapping[str, MetricValue]) -> pandas.DataFrame:
    """Return one row a score of one SAE."""
    types = {name: kind for name, kind in _SCORE.items() if name != "valid_null"}
    return _frame([_score(name, metric) for name, metric in scores.items()], types)


def score_lines(scores: Mapping[str, MetricValue]) -> str:
    """Return the scores of one SAE as aligned lines; what does not apply has its reason.

    A metric of which no score applies, all for one reason, is one line.
    """
    head = ["", "value", "floor", "ceiling"]
    scores = _told_once(scores)
    rows = [
        [name, *(number(value) for value in (metric.value, metric.floor, metric.ceiling))]
        for name, metric in scores.items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row, reason in zip([head, *rows], [None, *(metric.reason for metric in scores.values())], strict=True):
        first, *others = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(plain("  ".join([*cells, *([reason] if reason else [])]).rstrip()))
    return "\n".join(lines)


def _told_once(scores: Mapping[str, MetricValue]) -> dict[str, MetricValue]:
    reasons: dict[str, set[str | None]] = {}
    for name, metric in scores.items():
        reasons.setdefault(name.split("/")[0], set()).add(None if metric.status == "ok" else metric.reason)
    silent = {metric for metric, found in reasons.items() if len(found) == 1 and None not in found}
    return {name.split("/")[0] if name.split("/")[0] in silent else name: metric for name, metric in scores.items()}


def _frame(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(
        {name: pandas.Series([row.get(name) for row in rows], dtype=kind) for name, kind in types.items()}
    )
