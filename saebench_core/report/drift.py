"""Charts of how far directions have moved from where they were drawn (paper figure 11), alive and dead apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report.tables import is_trained
from saebench_core.report.words import l0_text
from saebench_core.results import CellResult

__all__ = ["drift_charts"]

SHOWN: Final = (0.05, 0.1, 1.0)
"""Shares of the training; the paper shows the first two."""
_NEAR: Final = 0.1
"""Miss of a share, as a part of it, that short trainings are allowed: their steps are coarse."""


def drift_charts(
    cells: Sequence[tuple[CellResult, Sequence[Mapping[str, Any]]]], lowest: float, bins: int
) -> list[Chart]:
    """Return a chart for each backbone, site, architecture and L0 with constraints whose decoder moved.

    Args:
        cells: with what each cell's `drift.json` holds.
        lowest: where the first bin of the counts begins; the last ends at 1.
        bins: their number.
    """
    groups: dict[tuple[str, str, str, float | None], list[tuple[CellResult, Sequence[Mapping[str, Any]]]]] = {}
    for cell, drift in cells:
        if drift and not _fixed(cell):
            key = (cell.backbone.name, cell.site, cell.architecture.name, cell.l0_target)
            groups.setdefault(key, []).append((cell, drift))
    several = Counter(key[:3] for key in groups)
    width = (1.0 - lowest) / bins
    middles = tuple(lowest + (index + 0.5) * width for index in range(bins))
    charts = []
    for (*place, l0), found in groups.items():
        backbone, site, architecture = place
        panels = tuple(
            panel
            for share in SHOWN
            for state in ("alive", "dead")
            if (panel := _panel(share, state, found, middles)).series
        )
        title = f"How far directions moved: {backbone} / {site} · {architecture}"
        if several[backbone, site, architecture] > 1:
            title += f" · {l0_text(l0)}"
        caption = (
            "share of latents by the cosine of their decoder direction with where it was drawn; "
            "titles tell how much variance of held-out rows is explained by then"
        )
        if panels:
            charts.append(Chart(title, caption, "cosine with the start", "share of latents", panels))
    return charts


def _fixed(cell: CellResult) -> bool:
    return "W_dec" in ((cell.certificate or {}).get("frozen") or {})


def _panel(
    share: float,
    state: str,
    found: Sequence[tuple[CellResult, Sequence[Mapping[str, Any]]]],
    middles: tuple[float, ...],
) -> ChartPanel:
    counts: dict[str, list[int]] = {}
    trained: dict[str, bool] = {}
    explained: dict[str, list[float]] = {}
    for cell, drift in found:
        point = min(drift, key=lambda point: abs(float(point["share"]) - share))
        part = point["decoder"][state]
        if abs(float(point["share"]) - share) > _NEAR * share:
            continue
        if is_trained(cell) and "explained_variance" in point:
            explained.setdefault(cell.constraint.name, []).append(float(point["explained_variance"]))
        if part["latents"]:
            before = counts.get(cell.constraint.name, [0] * len(middles))
            counts[cell.constraint.name] = [a + b for a, b in zip(before, part["counts"], strict=True)]
            trained[cell.constraint.name] = is_trained(cell)
    series = tuple(
        Series(name, middles, tuple(count / sum(numbers) for count in numbers), trained[name])
        for name, numbers in counts.items()
    )
    return ChartPanel(f"after {share:.0%} of the steps, {state} latents{_explained(explained)}", series)


def _explained(values: Mapping[str, Sequence[float]]) -> str:
    """Tell what the first trained SAE explains by then: directions may be where they were drawn, and it nearly done."""
    if not values:
        return ""
    name, mine = next(iter(values.items()))
    return f" · {name} explains {fmean(mine):.3f}"
