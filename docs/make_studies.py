"""Fills the tables and figures of the studies from what a workdir has, and from what is stored beside the pages.

``python docs/make_studies.py collect paper-synthetic --workdir .saebench`` stores the results of a preset in
``docs/studies/data``, with the charts that pages ask for; ``python docs/make_studies.py`` writes the pages from what is
stored there, and with ``--check`` says what in them is not made from it.

A page asks for a table, a figure or what was run in a comment, and what follows it up to the next ``<!-- end -->`` is
written anew::

    <!-- table data=paper-synthetic rows=constraint scores=reconstruction/explained_variance backbone=variable -->
    <!-- table data=paper-synthetic rows=constraint columns=architecture score=feature_recovery/mean -->
    <!-- figure data=map-width chart="reconstruction/explained_variance by d_sae" -->
    <!-- runs data=paper-synthetic,map-width -->

Other keys choose cells (``backbone``, ``architecture``, ``constraint``, ``l0``); ``paper="NAME:VALUE NAME:VALUE"`` adds
the paper's row. ``!`` marks what had not converged, ``†`` what collapsed.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from saebench_core.api import charts_of, open_registry
from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report import chart_picture, comparisons
from saebench_core.report.lines import score_charts
from saebench_core.report.words import number

FOLDER: Final = Path(__file__).parent / "studies"
AXES: Final = ("backbone", "architecture", "constraint", "l0")
MARKED: Final = re.compile(r"<!-- (table|figure|runs) (.*?) -->\n.*?<!-- end -->", re.DOTALL)
LIMITS: Final = ("floors", "ceilings")
MARKS: Final = {"collapsed": "†", "not_converged": "!"}
DIGITS: Final = 6
Row = Mapping[str, Any]


def collect(registry: str, workdir: Path) -> dict[str, Any]:
    """Return the results of a registry that a page can ask for: scores of every cell, and charts."""
    opened = open_registry(registry, workdir)
    records = opened.records()
    cells = [record for record in records if record.result.status == "done"]
    charts, problems = charts_of(opened, cells)
    for problem in problems:
        sys.stderr.write(f"warning: {problem}\n")
    found = comparisons(cells)
    for score in opened.registry.headline:
        charts += score_charts(found, cells, score)
    environment = opened.sweep().environment
    kept = ("saebench-core", "torch", "scikit-learn")
    return {
        "registry": registry,
        "versions": {name: environment[name] for name in kept if name in environment},
        "cells": [_row(record) for record in cells],
        "left": sum(record.result.status != "done" for record in records if record.result.status != "excluded"),
        "hours": round(sum(sum(record.seconds.values()) for record in cells) / 3600, 2),
        "charts": {chart.title: _rounded(asdict(chart)) for chart in charts},
    }


def _row(record: Any) -> dict[str, Any]:
    result = record.result
    return {
        "backbone": result.backbone.name,
        "architecture": result.architecture.name,
        "constraint": result.constraint.name,
        "l0": result.l0_target,
        "seed": result.seed,
        "flags": list(result.flags),
        "steps": record.params.get("steps"),
        "scores": {
            name: _rounded(value.value) for name, value in sorted(result.metrics.items()) if value.value is not None
        },
        "floors": {
            name: _rounded(value.floor) for name, value in sorted(result.metrics.items()) if value.floor is not None
        },
        "ceilings": {
            name: _rounded(value.ceiling) for name, value in sorted(result.metrics.items()) if value.ceiling is not None
        },
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def asked_of(preset: str) -> tuple[set[str], set[str]]:
    """Return the charts and the scores that pages ask of a preset."""
    charts: set[str] = set()
    scores: set[str] = set()
    for path in FOLDER.glob("*.md"):
        for _, words in MARKED.findall(path.read_text(encoding="utf-8")):
            asked = dict(word.split("=", 1) for word in shlex.split(words))
            if asked["data"] == preset:
                charts |= {asked["chart"]} if "chart" in asked else set()
                scores |= {*asked.get("scores", asked.get("score", "")).split(",")} - {""}
    return charts, scores


def pruned(found: Mapping[str, Any], charts: set[str], scores: set[str]) -> dict[str, Any]:
    """Return all scores, and of charts, floors and ceilings what pages ask for.

    Raises:
        KeyError: for a chart that there is not.
    """
    if missing := charts - set(found["charts"]):
        raise KeyError(f"charts: {sorted(missing)}; there are: {sorted(found['charts'])}")
    cells = [
        {**cell, **{limit: {score: cell[limit][score] for score in cell[limit] if score in scores} for limit in LIMITS}}
        for cell in found["cells"]
    ]
    kept = {title: chart for title, chart in found["charts"].items() if title in charts}
    return {**found, "cells": cells, "charts": kept}


def stored(preset: str) -> dict[str, Any]:
    """Return what is stored of a preset."""
    found: dict[str, Any] = json.loads((FOLDER / "data" / f"{preset}.json").read_text(encoding="utf-8"))
    return found


def table(cells: Sequence[Row], asked: Mapping[str, str]) -> str:
    """Return a Markdown table of means over seeds.

    Raises:
        KeyError: for a value or score that no cell has.
        ValueError: if a place of the table would hold different cells of one seed.
    """
    chosen = list(cells)
    for axis in AXES:
        wanted = asked[axis].split(",") if axis in asked else []
        missing = set(wanted) - {str(cell[axis]) for cell in cells}
        if missing:
            raise KeyError(f"{axis}: {sorted(missing)}")
        chosen = [cell for cell in chosen if not wanted or str(cell[axis]) in wanted]
    by_score = "scores" in asked
    scores = asked["scores"].split(",") if by_score else [asked["score"]]
    unknown = set(scores) - {score for cell in chosen for score in cell["scores"]}
    if unknown:
        raise KeyError(f"scores: {sorted(unknown)}")
    rows = list(dict.fromkeys(str(cell[asked["rows"]]) for cell in chosen))
    columns = scores if by_score else list(dict.fromkeys(str(cell[asked["columns"]]) for cell in chosen))
    lines = [f"| {asked['rows']} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]

    def places(cells: Sequence[Row]) -> list[tuple[list[Row], str]]:
        if by_score:
            return [(list(cells), score) for score in scores]
        return [([cell for cell in cells if str(cell[asked["columns"]]) == column], scores[0]) for column in columns]

    for row in rows:
        mine = [cell for cell in chosen if str(cell[asked["rows"]]) == row]
        lines.append(f"| {row} | {' | '.join(_text(*place) for place in places(mine))} |")
    for limit in LIMITS:
        values = [_limit(*place, limit) for place in places(chosen)]
        if any(values):
            lines.append(f"| *{limit[:-1]}* | {' | '.join(values)} |")
    paper = dict(pair.split(":") for pair in asked.get("paper", "").split())
    if paper:
        lines.append(f"| *the paper* | {' | '.join(paper.get(column, '') for column in columns)} |")
    return "\n".join(lines)


def _text(cells: Sequence[Row], score: str) -> str:
    found = [cell for cell in cells if score in cell["scores"]]
    if not found:
        return ""
    if len({cell["seed"] for cell in found}) < len(found):
        raise ValueError(f"{score}: several cells of one seed; choose among {', '.join(AXES)}")
    values = [cell["scores"][score] for cell in found]
    mark = "".join(f" {MARKS[flag]}" for flag in MARKS if any(flag in cell["flags"] for cell in found))
    spread = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{number(statistics.fmean(values))}{spread}{mark}"


def _limit(cells: Sequence[Row], score: str, limit: str) -> str:
    """A floor or ceiling, where all cells of a column have the same one."""
    found = {cell[limit].get(score) for cell in cells} - {None}
    return number(found.pop()) if len(found) == 1 else ""


def _chart(plain: Mapping[str, Any]) -> Chart:
    panels = tuple(
        ChartPanel(panel["title"], tuple(_series(one) for one in panel["series"]), panel["levels"])
        for panel in plain["panels"]
    )
    return Chart(**{**plain, "panels": panels, "x_names": tuple(plain["x_names"])})


def _series(plain: Mapping[str, Any]) -> Series:
    lists = {name: tuple(plain[name]) for name in ("x", "y", "spread", "notes")}
    return Series(**{**plain, **lists})


def runs(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table of what was run: cells, seeds, steps, flags and time of one thread."""
    lines = ["| preset | cells | not run | seeds | steps | not converged | collapsed | hours |", f"|{'---|' * 8}"]
    for preset, data in found.items():
        cells = data["cells"]
        counted = [sum(flag in cell["flags"] for cell in cells) for flag in ("not_converged", "collapsed")]
        steps = sorted({cell["steps"] for cell in cells if cell["steps"]})
        span = " ... ".join(f"{one:,}" for one in dict.fromkeys((steps[0], steps[-1]))) if steps else ""
        seeds = ", ".join(map(str, sorted({cell["seed"] for cell in cells})))
        row = (preset, len(cells), data["left"], seeds, span, *counted, data["hours"])
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def filled(page: str, text: str) -> tuple[str, dict[str, str]]:
    """Return a page with its tables and figures made anew, and the pictures by file name.

    Raises:
        KeyError: if a page asks for what is not stored.
    """
    pictures: dict[str, str] = {}

    def make(match: re.Match[str]) -> str:
        kind, words = match.groups()
        asked = dict(word.split("=", 1) for word in shlex.split(words))
        if kind == "runs":
            made = runs({preset: stored(preset) for preset in asked["data"].split(",")})
        elif kind == "table":
            made = table(stored(asked["data"])["cells"], asked)
        else:
            chart = _chart(stored(asked["data"])["charts"][asked["chart"]])
            slug = re.sub(r"[^a-z0-9]+", "-", f"{asked['data']} {asked.get('name', asked['chart'])}".lower()).strip("-")
            panels = asked["panels"].split("|") if "panels" in asked else ()
            pictures[f"{page}-{slug}.svg"] = chart_picture(chart, panels)
            made = f"![{chart.title}](images/{page}-{slug}.svg)"
        return f"<!-- {kind} {words} -->\n\n{made}\n\n<!-- end -->"

    return MARKED.sub(make, text), pictures


def write(check: bool) -> list[str]:
    """Write all pages and pictures; with ``check`` write nothing and return what differs."""
    differing = []
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        made, pictures = filled(path.stem, text)
        files = {path: made, **{FOLDER / "images" / name: content for name, content in pictures.items()}}
        for place, content in files.items():
            if place.is_file() and place.read_text(encoding="utf-8") == content:
                continue
            differing.append(place.relative_to(FOLDER).as_posix())
            if not check:
                place.parent.mkdir(exist_ok=True)
                place.write_text(content, encoding="utf-8")
    return differing


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect, write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not made from the data")
    commands = parser.add_subparsers(dest="command")
    collecting = commands.add_parser("collect", help="store the results of presets")
    collecting.add_argument("presets", nargs="+", metavar="PRESET")
    collecting.add_argument("--workdir", type=Path, default=Path(".saebench"))
    given = parser.parse_args(arguments)
    for preset in given.presets if given.command == "collect" else ():
        found = pruned(collect(f"preset:{preset}", given.workdir), *asked_of(preset))
        place = FOLDER / "data" / f"{preset}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(
            json.dumps(found, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
        )
        sys.stdout.write(f"{place}: {len(found['cells'])} cells, {found['left']} left\n")
    if given.check and not any(FOLDER.glob("*.md")):
        parser.error(f"there is no page in {FOLDER} to check")
    differing = write(given.check)
    for name in differing:
        sys.stdout.write(f"{'differs' if given.check else 'written'}: {name}\n")
    return 1 if given.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
