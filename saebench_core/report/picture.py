"""A chart as an SVG file of its own, for pages that are no report."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_core.errors import InputError
from saebench_core.interfaces.chart import Chart
from saebench_core.report.drawing import drawn
from saebench_core.report.templating import template

__all__ = ["chart_picture"]

HEAD = 24


def chart_picture(chart: Chart, panels: Sequence[str] = (), beside: Sequence[Chart] = ()) -> str:
    """Return the picture, two panels in a row.

    Args:
        chart: the chart.
        panels: parts of the titles of the panels to draw; empty for all.
        beside: charts of the same page: a label looks the same in all of them.

    Raises:
        InputError: if no panel is left.
    """
    found = [panel for panel in drawn(chart, beside) if not panels or any(part in panel.title for part in panels)]
    if not found:
        titles = ", ".join(repr(panel.title) for panel in chart.panels) or "none"
        raise InputError(f"chart {chart.title!r} has no panel {', '.join(panels)}; there are: {titles}")
    high = round(max(panel.height for panel in found)) + HEAD
    size = {"across": min(2, len(found)), "down": -(-len(found) // 2), "wide": found[0].width, "high": high}
    return template("picture.svg.j2").render(panels=found, **size).rstrip() + "\n"
