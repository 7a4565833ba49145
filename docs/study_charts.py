"""Charts made from stored cells: a score against L0, or several scores beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from study_tables import LIMITS, Row, chosen_cells, in_order, standing_values

from saebench_core.interfaces.chart import Chart, ChartPanel, Series


def against_l0(data: Mapping[str, Any], asked: Mapping[str, str]) -> Chart:
    """Return the chart of a score over L0, a panel for each architecture, a line for each constraint.

    Args:
        data: stored results.
        asked: ``score``, ``title`` if it is to have another, and what chooses cells.

    Raises:
        KeyError: for a name or score that no cell has.
    """
    score = asked["score"]
    cells = _with(chosen_cells(data["cells"], asked), [score])

    def panel(name: str) -> ChartPanel:
        mine = [row for row in cells if row["architecture"] == name]
        return ChartPanel(name, _lines(mine, lambda row: row["l0"], [score]), _levels(data["limits"], mine, score))

    panels = tuple(panel(name) for name in in_order(cells, "architecture"))
    return Chart(asked.get("title", f"{score} against L0"), _caption(cells), "L0", score, panels, x_log=True)


def beside_each_other(data: Mapping[str, Any], asked: Mapping[str, str]) -> Chart:
    """Return the chart of several scores, a panel for each architecture, marks of each constraint (paper figure 1).

    Args:
        data: stored results.
        asked: ``scores``, ``title``, and what chooses cells.

    Raises:
        KeyError: for a name or score that no cell has.
    """
    scores = asked["scores"].split(",")
    cells = _with(chosen_cells(data["cells"], asked), scores)
    panels = tuple(
        ChartPanel(name, _lines([row for row in cells if row["architecture"] == name], None, scores))
        for name in in_order(cells, "architecture")
    )
    return Chart(asked["title"], _caption(cells), "score", "value", panels, x_names=tuple(scores))


def _with(cells: Sequence[Row], scores: Sequence[str]) -> list[Row]:
    for score in scores:
        if not any(score in row["scores"] for row in cells):
            raise KeyError(f"{score}: no cell has it")
    return list(cells)


def _lines(cells: Sequence[Row], place: Any, scores: Sequence[str]) -> tuple[Series, ...]:
    found = []
    for name in in_order(cells, "constraint"):
        mine = [row for row in cells if row["constraint"] == name]
        points = _points(mine, place, scores)
        if points:
            x, y, spread, hollow = zip(*points, strict=True)
            found.append(Series(name, x, y, name.startswith("trained"), spread, hollow=hollow))
    return tuple(found)


def _points(cells: Sequence[Row], place: Any, scores: Sequence[str]) -> list[tuple[float, float, float, bool]]:
    """Return place, mean, spread, and whether a flag speaks of it: of one score by place, or of scores by number."""
    groups: list[tuple[float, str, list[Row]]] = [(number, score, list(cells)) for number, score in enumerate(scores)]
    if place is not None:
        places = sorted({place(row) for row in cells})
        groups = [(where, scores[0], [row for row in cells if place(row) == where]) for where in places]
    found = []
    for where, score, rows in groups:
        having = [row for row in rows if score in row["scores"]]
        if having:
            values = standing_values(having, score)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found.append((where, statistics.fmean(values), spread, any(row["flags"] for row in having)))
    return found


def _levels(limits: Mapping[str, Any], cells: Sequence[Row], score: str) -> dict[str, float]:
    levels = {}
    for limit in LIMITS:
        values = {limits[row["backbone"]][limit].get(score) for row in cells}
        if len(values) == 1 and (value := values.pop()) is not None:
            levels[limit] = value
    return levels


def _caption(cells: Sequence[Row]) -> str:
    seeds = len({row["seed"] for row in cells})
    told = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return told + ("; hollow marks carry a flag" if any(row["flags"] for row in cells) else "")
