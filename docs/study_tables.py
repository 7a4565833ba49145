"""Tables and figures of the studies, from stored results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report import chart_picture
from saebench_core.report.words import number

AXES: Final = ("backbone", "architecture", "constraint", "l0")
LIMITS: Final = ("floor", "ceiling")
MARKS: Final = {"collapsed": "†", "not_converged": "!", "missed_l0": "‡"}
Row = Mapping[str, Any]
Tell = Callable[[float], str]


def table(data: Mapping[str, Any], asked: Mapping[str, str]) -> str:
    """Return a Markdown table of means over the seeds that did not collapse.

    Raises:
        KeyError: for a value or score that no cell has.
        ValueError: if a place of the table would hold different cells of one seed.
    """
    chosen = chosen_cells(data["cells"], asked)
    by_score = "scores" in asked
    scores = asked["scores"].split(",") if by_score else [asked["score"]]
    unknown = set(scores) - {score for cell in chosen for score in cell["scores"]}
    if unknown:
        raise KeyError(f"scores: {sorted(unknown)}")
    rows = in_order(chosen, asked["rows"])
    columns = scores if by_score else in_order(chosen, asked["columns"])
    heads = [head_of(column) for column in columns] if by_score else columns
    lines = [f"| {asked['rows']} | {' | '.join(heads)} |", f"|---|{'---|' * len(columns)}"]
    tell = _teller(asked)

    def places(cells: Sequence[Row]) -> list[tuple[list[Row], str]]:
        if by_score:
            return [(list(cells), score) for score in scores]
        return [([cell for cell in cells if str(cell[asked["columns"]]) == column], scores[0]) for column in columns]

    for row in rows:
        mine = [cell for cell in chosen if str(cell[asked["rows"]]) == row]
        lines.append(f"| {row} | {' | '.join(_text(*place, tell) for place in places(mine))} |")
    for limit in LIMITS:
        values = [_limit(data["limits"], *place, limit, tell) for place in places(chosen)]
        if any(values):
            lines.append(f"| *{limit}* | {' | '.join(values)} |")
    if paper := _paper(asked):
        lines.append(f"| *the paper* | {' | '.join(paper.get(column, '') for column in columns)} |")
    return "\n".join(lines)


def head_of(score: str) -> str:
    """Return a score's name as the head of a column, in words between which lines can break."""
    return score.replace("_", " ").replace("/", " / ")


def _teller(asked: Mapping[str, str]) -> Tell:
    """Return how numbers are told: as they are, or as counts of ``times``."""
    if "times" not in asked:
        return number
    times = float(asked["times"])
    return lambda value: f"{value * times:,.0f}"


def _paper(asked: Mapping[str, str]) -> dict[str, str]:
    return dict(pair.split(":") for pair in asked.get("paper", "").split())


def in_order(cells: Sequence[Row], axis: str) -> list[str]:
    """Return names in the order of the cells; one that comes later stands behind its neighbour there."""
    found: list[str] = []
    place = 0
    for cell in cells:
        name = str(cell[axis])
        if name not in found:
            found.insert(place, name)
        place = found.index(name) + 1
    return found


def chosen_cells(cells: Sequence[Row], asked: Mapping[str, str]) -> list[Row]:
    """Return the cells that are asked for by backbone, architecture, constraint, L0 and seed, each one name or several.

    Raises:
        KeyError: for a name that no cell has.
    """
    chosen = list(cells)
    for axis in (*AXES, "seed"):
        wanted = asked[axis].split(",") if axis in asked else []
        if missing := set(wanted) - {str(cell[axis]) for cell in cells}:
            raise KeyError(f"{axis}: {sorted(missing)}")
        chosen = [cell for cell in chosen if not wanted or str(cell[axis]) in wanted]
    return chosen


def _text(cells: Sequence[Row], score: str, tell: Tell) -> str:
    found = [cell for cell in cells if score in cell["scores"]]
    if not found:
        return ""
    if len({cell["seed"] for cell in found}) < len(found):
        raise ValueError(f"{score}: several cells of one seed; choose among {', '.join(AXES)}")
    standing, values = _standing(found), standing_values(found, score)
    marks = "".join(f" {MARKS[flag]}" for flag in MARKS if any(flag in cell["flags"] for cell in standing))
    mean = tell(statistics.fmean(values))
    spread = f" ± {_briefly(statistics.stdev(values), mean, tell)}" if len(values) > 1 else ""
    part = f" ({len(standing)} of {len(found)})" if len(standing) < len(found) else ""
    return f"{mean}{spread}{marks}{part}"


def _briefly(spread: float, mean: str, tell: Tell) -> str:
    """Tell a spread with no more digits than its mean has; a table has little room."""
    decimals = mean.partition(".")[2]
    told = tell(spread)
    if not decimals and "." in told:
        return f"{spread:.0f}"
    return f"{spread:.{len(decimals)}f}" if decimals.isdigit() else told


def _standing(cells: Sequence[Row]) -> list[Row]:
    return [cell for cell in cells if "collapsed" not in cell["flags"]] or list(cells)


def standing_values(cells: Sequence[Row], score: str) -> list[float]:
    """Return what a mean is of: the score of all cells that did not collapse, if there are any."""
    return [cell["scores"][score] for cell in _standing(cells)]


def _limit(limits: Mapping[str, Any], cells: Sequence[Row], score: str, limit: str, tell: Tell) -> str:
    """A floor or ceiling, where all backbones of a column have the same one."""
    found = {limits[cell["backbone"]][limit].get(score) for cell in cells}
    return tell(found.pop()) if len(found) == 1 and None not in found else ""


def _chart(plain: Mapping[str, Any]) -> Chart:
    panels = tuple(
        ChartPanel(panel["title"], tuple(_series(one) for one in panel["series"]), panel["levels"])
        for panel in plain["panels"]
    )
    return Chart(**{**plain, "panels": panels, "x_names": tuple(plain["x_names"])})


def _series(plain: Mapping[str, Any]) -> Series:
    lists = {name: tuple(plain[name]) for name in ("x", "y", "spread", "notes", "hollow")}
    return Series(**{**plain, **lists})


def best(found: Mapping[str, Mapping[str, Any]], asked: Mapping[str, str]) -> str:
    """Return a Markdown table of the setting in which each architecture has most of a score, and what it has beside it.

    Architectures that differ in what follows a hyphen are one row; a setting's score is the mean over its seeds.

    Args:
        found: stored results by the name of a preset, or of a preset and one of its backbones (``preset:backbone``).
        asked: ``score``, ``beside`` (another score), ``constraint``, ``without`` (backbones that do not count),
            ``paper`` and ``times`` as for other tables.

    Raises:
        KeyError: for a preset, backbone or constraint without cells, and for a score that one of them lacks.
    """
    settings: dict[tuple[str, str, str], list[Row]] = {}
    score, beside, without = asked["score"], asked["beside"], asked.get("without", "").split(",")
    for place, data in found.items():
        preset, _, only = place.partition(":")
        chosen = chosen_cells(data["cells"], {"constraint": asked["constraint"]})
        chosen = [cell for cell in chosen if only in ("", cell["backbone"]) and cell["backbone"] not in without]
        if not chosen or not all({score, beside} <= cell["scores"].keys() for cell in chosen):
            raise KeyError(f"{place}: {asked['constraint']}: {score}, {beside}")
        for cell in chosen:
            settings.setdefault((preset, cell["backbone"], cell["architecture"]), []).append(cell)
    paper, tell = _paper(asked), _teller(asked)
    heads = ("architecture", asked["named"], "the paper", beside.split("/")[1].replace("_", " "), "steps", "setting")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for kind in dict.fromkeys(name.split("-")[0] for _, _, name in settings):
        mine = [(where, cells) for where, cells in settings.items() if where[2].split("-")[0] == kind]
        where, cells = max(mine, key=lambda one: statistics.fmean(standing_values(one[1], score)))
        setting = f"`{where[1]}` of `{where[0]}`" + (f", `{where[2]}`" if where[2] != kind else "")
        told = (_text(cells, score, tell), paper.get(kind, ""), _text(cells, beside, number), f"{cells[0]['steps']:,}")
        lines.append(f"| {' | '.join((kind, *told, setting))} |")
    return "\n".join(lines)


def runs(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of what was run: cells, seeds, steps, flags and time of one thread."""
    heads = ("preset", "cells", "to run", "failed", "seed", "steps", *MARKS, "hours")
    lines = [f"| {' | '.join(head.replace('_', ' ') for head in heads)} |", f"|{'---|' * len(heads)}"]
    for preset, data in found.items():
        cells = data["cells"]
        counted = [sum(flag in cell["flags"] for cell in cells) for flag in MARKS]
        steps = sorted({cell["steps"] for cell in cells if cell["steps"]})
        span = " ... ".join(f"{one:,}" for one in dict.fromkeys((steps[0], steps[-1]))) if steps else ""
        seeds = ", ".join(map(str, sorted({cell["seed"] for cell in cells})))
        hours = round(sum(cell["seconds"] for cell in cells) / 3600, 2)
        row = (preset, len(cells), data["left"], data["failed"], seeds, span, *counted, hours)
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def chosen_chart(plain: Mapping[str, Any], asked: Mapping[str, str]) -> Chart:
    """Return a stored chart with the series that are asked for."""
    series = asked["series"].split(",") if "series" in asked else []
    names = {one["label"] for panel in plain["panels"] for one in panel["series"]}
    if missing := set(series) - names:
        raise KeyError(f"series: {sorted(missing)}; there are: {sorted(names)}")
    panels = [
        {**panel, "series": [one for one in panel["series"] if not series or one["label"] in series]}
        for panel in plain["panels"]
    ]
    return _chart({**plain, "panels": panels})


def figure(chart: Chart, asked: Mapping[str, str], beside: Sequence[Chart] = ()) -> tuple[str, str]:
    """Return the picture of a chart and its caption; a label looks as it does in the charts beside it."""
    axes = "" if chart.y_label in chart.title else f": {chart.y_label} against {chart.x_label}"
    caption = f"*{chart.title}{axes}; {chart.caption}.*"
    return chart_picture(chart, asked["panels"].split("|") if "panels" in asked else (), beside), caption
