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
the paper's row, ``times=N`` tells shares of N as counts, ``series="NAME,NAME"`` and ``panels="PART|PART"`` choose what
a figure shows. ``†`` marks what collapsed, ``!`` what had not converged, ``‡`` what missed its L0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from study_tables import LIMITS, figure, runs, table

from saebench_core.api import charts_of, open_registry
from saebench_core.report import comparisons
from saebench_core.report.lines import score_charts

FOLDER: Final = Path(__file__).parent / "studies"
END: Final = "<!-- end -->"
MARKED: Final = re.compile(rf"<!-- (table|figure|runs) (.*?) -->\n.*?{END}", re.DOTALL)
DIGITS: Final = 6


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
        "left": sum(record.result.status == "pending" for record in records),
        "failed": sum(record.result.status == "failed" for record in records),
        "limits": _limits([record.result for record in cells]),
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


def _keys(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(words))


def charts_asked(preset: str) -> set[str]:
    """Return the charts that pages ask of a preset."""
    asked = [
        _keys(words)
        for path in FOLDER.glob("*.md")
        for kind, words in MARKED.findall(path.read_text(encoding="utf-8"))
        if kind == "figure"
    ]
    return {one["chart"] for one in asked if one["data"] == preset}


def pruned(found: Mapping[str, Any], charts: set[str]) -> dict[str, Any]:
    """Return what was found, with those charts alone.

    Raises:
        KeyError: for a chart that there is not.
    """
    if missing := charts - set(found["charts"]):
        raise KeyError(f"charts: {sorted(missing)}; there are: {sorted(found['charts'])}")
    return {**found, "charts": {title: chart for title, chart in found["charts"].items() if title in charts}}


def stored(preset: str) -> dict[str, Any]:
    """Return what is stored of a preset."""
    found: dict[str, Any] = json.loads((FOLDER / "data" / f"{preset}.json").read_text(encoding="utf-8"))
    return found


def filled(page: str, text: str) -> tuple[str, dict[str, str]]:
    """Return a page with its tables and figures made anew, and the pictures by file name.

    Raises:
        KeyError: if a page asks for what is not stored.
        ValueError: if the end of a table or figure is missing.
    """
    pictures: dict[str, str] = {}

    def make(match: re.Match[str]) -> str:
        kind, words = match.groups()
        asked = _keys(words)
        if "<!-- " in match.group()[4 : -len(END)]:
            raise ValueError(f"{page}: <!-- {kind} {words} --> has no {END}")
        if kind == "runs":
            made = runs({preset: stored(preset) for preset in asked["data"].split(",")})
        elif kind == "table":
            made = table(stored(asked["data"]), asked)
        else:
            chart = stored(asked["data"])["charts"][asked["chart"]]
            slug = re.sub(r"[^a-z0-9]+", "-", f"{asked['data']} {asked.get('name', asked['chart'])}".lower()).strip("-")
            pictures[f"{page}-{slug}.svg"], caption = figure(chart, asked)
            made = f"![{chart['title']}](images/{page}-{slug}.svg)\n\n{caption}"
        return f"<!-- {kind} {words} -->\n\n{made}\n\n{END}"

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
        found = pruned(collect(f"preset:{preset}", given.workdir), charts_asked(preset))
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
