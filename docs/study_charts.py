"""Charts made from stored cells: a score against L0, or several scores beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from study_tables import LIMITS, MARKS, Row, chosen_cells, in_order, standing_values

from saebench_core.interfaces.chart import Chart, ChartPanel, Series

Place = tuple[float, str, Sequence[Row]]
"""Where a mark stands, and of which score of which cells it is the mean."""
Places = Callable[[Sequence[Row]], list[Place]]


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
        return ChartPanel(name, _lines(mine, _by_l0(score)), _levels(data["limits"], mine, score))

    panels = tuple(panel(name) for name in in_order(cells, "architecture"))
    return Chart(asked.get("title", f"{score} against L0"), _caption(cells), "L0", score, panels, x_log=True)


def beside_each_other(data: Mapping[str, Any], asked: Mapping[str, str]) -> Chart:
    """Return the chart of several scores, a panel for each architecture, marks of each constraint (paper figure 1).

    Floors and ceilings are marks too, since each score has its own.

    Args:
        data: stored results.
        asked: ``scores``, ``labels`` if they are to have others, ``title``, and what chooses cells.

    Raises:
        KeyError: for a name or score that no cell has.
        ValueError: if there are not as many labels as scores.
    """
    scores = asked["scores"].split(",")
    labels = tuple(asked.get("labels", asked["scores"]).split(","))
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels for {len(scores)} scores: {', '.join(labels)}")
    cells = _with(chosen_cells(data["cells"], asked), scores)

    def panel(name: str) -> ChartPanel:
        mine = [row for row in cells if row["architecture"] == name]
        return ChartPanel(name, (*_lines(mine, _by_score(scores)), *_limits(data["limits"], mine, scores)))

    panels = tuple(panel(name) for name in in_order(cells, "architecture"))
    return Chart(asked["title"], _caption(cells), "score", "value", panels, x_names=labels)


def _with(cells: Sequence[Row], scores: Sequence[str]) -> list[Row]:
    for score in scores:
        if not any(score in row["scores"] for row in cells):
            raise KeyError(f"{score}: no cell has it")
    return list(cells)


def _by_l0(score: str) -> Places:
    def places(cells: Sequence[Row]) -> list[Place]:
        return [(l0, score, [row for row in cells if row["l0"] == l0]) for l0 in sorted({row["l0"] for row in cells})]

    return places


def _by_score(scores: Sequence[str]) -> Places:
    return lambda cells: [(number, score, cells) for number, score in enumerate(scores)]


def _lines(cells: Sequence[Row], places: Places) -> tuple[Series, ...]:
    found = []
    for name in in_order(cells, "constraint"):
        mine = [row for row in cells if row["constraint"] == name]
        if points := [point for place in places(mine) if (point := _point(*place))]:
            x, y, spread, hollow = zip(*points, strict=True)
            found.append(Series(name, x, y, name.startswith("trained"), spread, hollow=hollow))
    return tuple(found)


def _point(where: float, score: str, cells: Sequence[Row]) -> tuple[float, float, float, bool] | None:
    """Return place, mean, spread, and whether a flag speaks of it; None where no cell has the score."""
    having = [row for row in cells if score in row["scores"]]
    if not having:
        return None
    values = standing_values(having, score)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return where, statistics.fmean(values), spread, _marked(having)


def _marked(cells: Sequence[Row]) -> bool:
    """Return whether a flag is there that tables mark; others, such as of the data, may be on every cell."""
    return any(flag in MARKS for row in cells for flag in row["flags"])


def _limits(limits: Mapping[str, Any], cells: Sequence[Row], scores: Sequence[str]) -> list[Series]:
    """Return floors and ceilings as marks of their own, where scores have them."""
    found: dict[str, list[tuple[float, float]]] = {limit: [] for limit in LIMITS}
    for place, score in enumerate(scores):
        for limit, value in _levels(limits, cells, score).items():
            found[limit].append((place, value))
    return [Series(limit, *zip(*places, strict=True)) for limit, places in found.items() if places]


def _levels(limits: Mapping[str, Any], cells: Sequence[Row], score: str) -> dict[str, float]:
    levels = {}
    for limit in LIMITS:
        values = {limits[row["backbone"]][limit].get(score) for row in cells}
        if len(values) == 1 and (value := values.pop()) is not None:
            levels[limit] = value
    return levels


def _caption(cells: Sequence[Row]) -> str:
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in cells:
        seeds.setdefault((row["architecture"], row["constraint"]), set()).add(row["seed"])
    fewest, most = min(map(len, seeds.values())), max(map(len, seeds.values()))
    span = f"{most}" if fewest == most else f"{fewest} to {most}"
    told = f"mean and standard deviation over {span} seeds" if most > 1 else "one seed"
    return told + ("; hollow marks carry a flag" if _marked(cells) else "")
