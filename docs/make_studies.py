"""Fills the tables and figures of the studies from what a workdir has, and from what is stored beside the pages.

``python docs/make_studies.py collect paper-synthetic --workdir .saebench`` stores the results of a preset in
``docs/studies/data``, with the charts that pages ask for, beside the cells that are stored there already, of this
preset or of another that has them too: a study may be run in pieces, whose workdirs need not be kept.
``python docs/make_studies.py`` writes the pages from what is stored there, and with ``--check`` says what in them is
not made from it.

A page asks for a table, differences, twins beside what is trained and explains as much, a figure (a stored chart, a
score against L0, or scores beside each other), latents in their contexts, what was run, or where most was reached, in a
comment, and what follows it up to the next ``<!-- end -->`` is written anew::

    <!-- table data=paper-synthetic rows=constraint scores=reconstruction/explained_variance backbone=variable -->
    <!-- table data=paper-synthetic rows=constraint columns=architecture score=feature_recovery/mean -->
    <!-- differences data=map-width trained=trained constraint=frozen_decoder scores=a/b -->
    <!-- matched data=tau,map-l0 by=a/b scores=a/c trained=trained constraint=frozen_decoder l0=40 -->
    <!-- figure data=map-width chart="reconstruction/explained_variance by d_sae" -->
    <!-- figure data=paper-smollm2-l0 score=ravel/disentangled architecture=batch_topk -->
    <!-- figure data=paper-smollm2 scores=reconstruction/explained_variance,ravel/disentangled title="All scores" -->
    <!-- latents data=paper-smollm2 gallery="smollm2 / layers.15 · batch_topk · L0 40" constraint=trained -->
    <!-- runs data=paper-synthetic,map-width -->
    <!-- best data=paper-synthetic:variable,map-width score=a/b beside=a/c constraint=trained named=features -->

Other keys choose cells (``backbone``, ``architecture``, ``constraint``, ``l0``, ``seed``); ``paper="NAME:VALUE
NAME:VALUE"`` adds the paper's row, ``delta="trained:TWIN,TWIN"`` the best twin's distance in percent of what is
trained, ``times=N`` tells shares of N as counts, ``series="NAME,NAME"`` and ``panels="PART|PART"`` choose what a
figure shows, ``labels="NAME,NAME"`` renames scores beside each other. ``†`` marks what collapsed, ``!`` what had not
converged, ``‡`` what missed its L0.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from study_charts import against_l0, beside_each_other
from study_data import Data, collect, merged, pruned, store, stored
from study_differences import best_twins, differences
from study_latents import latents
from study_matched import matched
from study_tables import best, chosen_chart, figure, runs, table

from saebench_core.interfaces.chart import Chart

FOLDER: Final = Path(__file__).parent / "studies"
END: Final = "<!-- end -->"
MARKED: Final = re.compile(rf"<!-- (best|differences|figure|latents|matched|runs|table) (.*?) -->\n.*?{END}", re.DOTALL)


def _keys(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(words))


def asked_of(preset: str, kind: str, key: str) -> set[str]:
    """Return what pages ask of a preset: charts of figures, galleries of latents."""
    asked = [
        _keys(words)
        for path in FOLDER.glob("*.md")
        for marked, words in MARKED.findall(path.read_text(encoding="utf-8"))
        if marked == kind
    ]
    return {one[key] for one in asked if one["data"] == preset and key in one}


def _of_one(make: Callable[[Data, Mapping[str, str]], str]) -> Callable[[Mapping[str, Data], Mapping[str, str]], str]:
    return lambda found, asked: make(found[asked["data"]], asked)


def _table(data: Data, asked: Mapping[str, str]) -> str:
    return "\n".join([table(data, asked), *([best_twins(data, asked)] if "delta" in asked else [])])


MAKERS: Final = {
    "best": best,
    "differences": _of_one(differences),
    "latents": _of_one(lambda data, asked: latents(data["galleries"][asked["gallery"]], asked)),
    "matched": matched,
    "runs": lambda found, asked: runs(found),
    "table": _of_one(_table),
}
"""What is written for a mark, from stored results by the name of a preset, or of a preset and one of its backbones."""


def place_of(preset: str) -> Path:
    """Return where the results of a preset are stored."""
    return FOLDER / "data" / f"{preset}.json"


def _chart_of(asked: Mapping[str, str]) -> Chart:
    data = stored(place_of(asked["data"]))
    if "chart" in asked:
        return chosen_chart(data["charts"][asked["chart"]], asked)
    return beside_each_other(data, asked) if "scores" in asked else against_l0(data, asked)


def filled(page: str, text: str) -> tuple[str, dict[str, str]]:
    """Return a page with its tables and figures made anew, and the pictures by file name.

    Raises:
        KeyError: if a page asks for what is not stored.
        ValueError: if the end of a table or figure is missing.
    """
    pictures: dict[str, str] = {}
    charts = {words: _chart_of(_keys(words)) for kind, words in MARKED.findall(text) if kind == "figure"}

    def make(match: re.Match[str]) -> str:
        kind, words = match.groups()
        asked = _keys(words)
        if "<!-- " in match.group()[4 : -len(END)]:
            raise ValueError(f"{page}: <!-- {kind} {words} --> has no {END}")
        if kind == "figure":
            title = asked.get("chart", charts[words].title)
            slug = re.sub(r"[^a-z0-9]+", "-", f"{asked['data']} {asked.get('name', title)}".lower()).strip("-")
            pictures[f"{page}-{slug}.svg"], caption = figure(charts[words], asked, list(charts.values()))
            made = f"![{charts[words].title}](images/{page}-{slug}.svg)\n\n{caption}"
        else:
            places = asked["data"].split(",")
            made = MAKERS[kind]({place: stored(place_of(place.split(":")[0])) for place in places}, asked)
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
        place = place_of(preset)
        before = stored(place) if place.is_file() else None
        others = [stored(other) for other in sorted(place.parent.glob("*.json")) if other != place]
        wanted = asked_of(preset, "figure", "chart"), asked_of(preset, "latents", "gallery")
        found = pruned(merged(collect(f"preset:{preset}", given.workdir), before, others), *wanted)
        store(place, found)
        sys.stdout.write(f"{place}: {len(found['cells'])} cells, {found['left']} left\n")
    if given.check and not any(FOLDER.glob("*.md")):
        parser.error(f"there is no page in {FOLDER} to check")
    differing = write(given.check)
    for name in differing:
        sys.stdout.write(f"{'differs' if given.check else 'written'}: {name}\n")
    return 1 if given.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
