"""The report: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saebench_core.interfaces.chart import Chart
from saebench_core.interfaces.excerpt import Gallery
from saebench_core.report.certificates import certificate_rows
from saebench_core.report.drawing import drawn
from saebench_core.report.figures import dot_figures
from saebench_core.report.lines import score_charts
from saebench_core.report.tables import Comparison, Verdicts, comparisons
from saebench_core.report.templating import template
from saebench_core.report.words import (
    FLAGS,
    VERDICTS,
    entry_notes,
    entry_text,
    flag_notes,
    l0_text,
    learned_text,
    number,
)
from saebench_core.results import CellRecord, MetricValue, Sweep
from saebench_core.store import write_atomically

__all__ = ["render_html", "write_html"]


class Definition(NamedTuple):
    """What one score means."""

    score: str
    metric: MetricValue
    versions: str
    description: str


def _moment(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000))


def render_html(
    sweep: Sweep,
    records: Sequence[CellRecord],
    *,
    descriptions: Mapping[str, str] | None = None,
    headline: Sequence[str] | None = None,
    notice: str | None = None,
    verdicts: Verdicts | None = None,
    commands: Sequence[str] | None = None,
    charts: Sequence[Chart] = (),
    galleries: Sequence[Gallery] = (),
) -> str:
    """Return the report of a sweep; equal inputs give equal text.

    Args:
        sweep: what was run.
        records: its cells.
        descriptions: score name to what it means.
        headline: scores that come first and get a figure; None for all that have a better direction.
        notice: a line on top about what the numbers may be used for.
        verdicts: what the statistics say, where known.
        commands: how to repeat the run; None for the usual ones.
        charts: drawn after those of the scores.
        galleries: texts in which latents fire, shown after the figures.
    """
    every = comparisons(records, verdicts=verdicts)
    directed = [row.score for comparison in every for row in comparison.rows if row.direction != "none"]
    first = list(dict.fromkeys(directed if headline is None else headline))
    found = [_headline_first(comparison, first) for comparison in every]
    figures = [(figure, score_charts(found, records, figure.score)) for figure in dot_figures(found, first)]
    together = [*(chart for _, own in figures for chart in own), *charts]
    context: dict[str, Any] = {
        "sweep": sweep,
        "records": records,
        "notice": notice,
        "commands": _commands(sweep) if commands is None else commands,
        "comparisons": found,
        "headline": first,
        "figures": [(figure, [(chart, drawn(chart, together)) for chart in own]) for figure, own in figures],
        "charts": [(chart, drawn(chart, together)) for chart in charts],
        "galleries": galleries,
        "flags": _flags(records),
        "verdict_words": VERDICTS if verdicts else {},
        "definitions": _definitions(records, descriptions or {}),
        "finished_ms": max((record.finished_ms for record in records), default=sweep.started_ms),
    }
    page = template(
        "report.html.j2",
        l0_text=l0_text,
        number=number,
        entry_text=entry_text,
        entry_notes=entry_notes,
        flag_notes=flag_notes,
        learned_text=learned_text,
        moment=_moment,
    )
    return page.render(context | _states(sweep, records))


def write_html(path: Path, sweep: Sweep, records: Sequence[CellRecord], **options: Any) -> Path:
    """Write the report of a sweep; the options are those of `render_html`."""
    write_atomically(path, render_html(sweep, records, **options))
    return path


def _states(sweep: Sweep, records: Sequence[CellRecord]) -> dict[str, Any]:
    certificates = certificate_rows(records)
    states = [record.result.status for record in records]
    counts = {state: states.count(state) for state in ("done", "failed", "excluded")}
    settled = {record.result.cell_id for record in records if record.result.status != "pending"}
    return {
        "certificates": certificates,
        "sound": sum(row.sound for row in certificates),
        "failed": [record.result for record in records if record.result.status == "failed"],
        "counts": counts,
        "missing": len(set(sweep.cells) - settled),
    }


def _headline_first(comparison: Comparison, headline: Sequence[str]) -> Comparison:
    order = {score: index for index, score in enumerate(headline)}
    rows = tuple(sorted(comparison.rows, key=lambda row: order.get(row.score, len(order))))
    return Comparison(comparison.block, comparison.constraints, comparison.seeds, rows, comparison.paired)


def _commands(sweep: Sweep) -> list[str]:
    version = sweep.environment.get("saebench-core") or sweep.environment.get("saebench_core")
    install = [f"pip install saebench-core=={version}"] if version else []
    return [*install, "# save the registry below as registry.yaml", "saebench run registry.yaml"]


def _flags(records: Sequence[CellRecord]) -> list[tuple[str, str, int]]:
    counts: dict[str, int] = {}
    for record in records:
        for flag in record.result.flags:
            counts[flag] = counts.get(flag, 0) + 1
    return [
        (flag, FLAGS.get(flag, "see the metric or plugin that sets it"), count)
        for flag, count in sorted(counts.items())
    ]


def _definitions(records: Sequence[CellRecord], descriptions: Mapping[str, str]) -> list[Definition]:
    metrics: dict[str, list[MetricValue]] = {}
    for record in records:
        for name, metric in record.result.metrics.items():
            metrics.setdefault(name, []).append(metric)
    return [
        Definition(
            name,
            found[0],
            ", ".join(map(str, sorted({metric.metric_version for metric in found}))),
            descriptions.get(name, ""),
        )
        for name, found in sorted(metrics.items())
    ]
