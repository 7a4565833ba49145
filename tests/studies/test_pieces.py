"""Results of studies: stored beside the pages, joined from pieces, and those of the presets as they are now."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from saebench_core import MissingPackageError
from saebench_core.api import open_registry
from tests.helpers.registries import TINY
from tests.helpers.runs import run
from tests.helpers.studies import AXES, DOCS, cell


def test_what_a_run_has_is_stored(studies, tmp_path):
    registry, workdir = str(tmp_path / "registry.yaml"), tmp_path / ".saebench"
    (tmp_path / "registry.yaml").write_text(TINY)
    assert run(tmp_path).code == 0
    collected = studies.collect(registry, workdir)
    found = studies.merged(collected, None)
    assert (len(found["cells"]), found["left"], found["failed"]) == (8, 0, 0)
    first = found["cells"][0]
    assert (first["constraint"], first["seed"], first["steps"]) == ("trained", 0, 20)
    assert first["scores"]["reconstruction/l0"] == 3.0 and first["seconds"] > 0
    assert "Best cosine of every true feature, sorted" in found["charts"]
    studies.store(tmp_path / "data" / "mine.json", found)
    assert studies.stored(tmp_path / "data" / "mine.json") == found
    assert studies.merged(collected, found) == found
    empty = studies.collect(registry, tmp_path / "elsewhere")
    assert studies.merged(empty, found) == found and studies.merged(empty, None)["left"] == 8


def test_pieces_of_a_study_come_together(studies, tmp_path):
    registry = str(tmp_path / "registry.yaml")
    (tmp_path / "registry.yaml").write_text(TINY)
    assert run(tmp_path).code == 0
    whole = studies.collect(registry, tmp_path / ".saebench")

    def series(seed, *labels):
        return [{"label": label, "y": [seed]} for label in labels]

    def piece(seed, floor):
        rows = [row for row in whole["cells"] if row["seed"] == seed]
        limits = {name: {**limits, "floor": {**limits["floor"], "feature_recovery/mean": floor}}
                  for name, limits in whole["limits"].items()}  # fmt: skip
        charts = {name: {"x_names": [name], "panels": [{"title": "p", "series": series(seed, *labels)}]}
                  for name, labels in (("both", ("trained", "pca")), (f"only of {seed}", ("pca",)))}  # fmt: skip
        charts["both"]["panels"].append({"title": f"new in {seed}", "series": series(seed, "trained")})
        return {**whole, "cells": rows, "limits": limits, "charts": charts}

    first = studies.merged(piece(0, 0.25), None)
    assert (len(first["cells"]), first["left"]) == (4, 4)
    same, other = (studies.merged(piece(1, floor), first) for floor in (0.25, 0.5))
    assert same["cells"] == whole["cells"] and same["left"] == 0
    drawn = {name: chart["panels"][0]["series"] for name, chart in same["charts"].items()}
    assert drawn == {
        "both": [*series(0, "trained"), *series(1, "pca")],  # cells of seed 0 are kept of what is trained, none of pca
        "only of 0": series(0, "pca"),
        "only of 1": series(1, "pca"),
    }
    assert [panel["title"] for panel in same["charts"]["both"]["panels"]] == ["p", "new in 0", "new in 1"]
    backbone = same["cells"][0]["backbone"]
    rounded = studies.merged(piece(1, 0.255), first)
    assert rounded["limits"][backbone]["floor"]["feature_recovery/mean"] == 0.255
    assert same["limits"][backbone]["floor"]["feature_recovery/mean"] == 0.25
    assert "feature_recovery/mean" not in other["limits"][backbone]["floor"]
    assert other["limits"][backbone]["ceiling"] == same["limits"][backbone]["ceiling"]
    newer = studies.merged({**piece(1, 0.25), "versions": {"torch": ["99"]}}, first)["versions"]
    assert newer["torch"] == sorted([*first["versions"]["torch"], "99"])
    assert studies.merged({**whole, "cells": [], "versions": {"torch": ["99"]}}, first)["versions"] == first["versions"]


def test_of_a_cell_the_newest_result_counts_and_what_the_registry_has_no_more_is_left_out(studies):
    def row(name, value):
        return {**cell("topk", "trained", 0, value), "id": name, "seconds": 1.0}

    def collected(rows, failed):
        limits = {"toy": {"floor": {}, "ceiling": {}}}
        plain = {
            "registry": "r",
            "versions": {},
            "charts": {},
            "galleries": {},
            "worlds": {"toy": "w"},
            "limits": limits,
        }
        return {**plain, "order": {key: {"backbone": "toy"} for key in "abcd"}, "cells": rows, "failed": failed}

    before = {**collected([row("a", 0.25), row("b", 0.5), row("gone", 1.0)], []), "charts": {}}
    found = studies.merged(collected([row("a", 0.75)], ["b", "c"]), before)
    assert [(one["id"], one["scores"]["a/b"]) for one in found["cells"]] == [("a", 0.75), ("b", 0.5)]
    assert (found["failed"], found["left"]) == (1, 1)  # "c" failed, "d" has not run; "b" did well before


def test_a_cell_of_another_registry_counts_under_the_names_that_it_has_here(studies):
    def stored(backbone, floor, version, **values):
        rows = [{**cell("topk", "trained", 0, value), "id": name, "backbone": backbone, "seconds": 2.0}
                for name, value in values.items()]  # fmt: skip
        limits = {backbone: {"floor": {"a/b": floor}, "ceiling": {}}}
        return {
            "registry": backbone,
            "worlds": {backbone: "as it was"},
            "cells": rows,
            "limits": limits,
            "versions": {"torch": [version]},
            "charts": {"C": 1},
            "galleries": {"G": 1},
        }

    names = {"backbone": "usual", "architecture": "mine", "constraint": "as-it-is"}
    wanted = {**stored("usual", 0.0, "1"), "cells": [], "order": dict.fromkeys("ab", names), "failed": []}
    wanted |= {"charts": {}, "galleries": {}}
    found = studies.merged(
        wanted, stored("usual", 0.5, "2", a=1.0), [stored("variable", 0.5, "3", a=9.0, b=2.0, c=3.0)]
    )
    assert [(row["id"], row["scores"]["a/b"], row["seconds"]) for row in found["cells"]] == [
        ("a", 1.0, 2.0),
        ("b", 2.0, 0),
    ]
    assert all(row.items() >= names.items() for row in found["cells"])
    assert found["versions"] == {"torch": ["2", "3"]} and found["limits"]["usual"]["floor"] == {"a/b": 0.5}
    assert (found["left"], found["charts"], found["galleries"]) == (0, {"C": 1}, {"G": 1})
    assert set(found["limits"]) == {"usual"}
    other = studies.merged(wanted, stored("usual", 0.5, "2", a=1.0), [stored("variable", 0.25, "3", b=2.0)])
    assert other["limits"]["usual"]["floor"] == {}
    drawn_otherwise = studies.merged({**wanted, "worlds": {"usual": "new"}}, stored("usual", 0.5, "2", a=1.0))
    assert (drawn_otherwise["cells"], drawn_otherwise["left"]) == ([], 2)


def test_of_charts_is_kept_what_pages_ask_for(studies, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "FOLDER", tmp_path)
    (tmp_path / "page.md").write_text(
        '<!-- figure data=mine chart="A chart" -->\n<!-- end -->\n'
        '<!-- figure data=yours chart="B" -->\n<!-- end -->\n'
        "<!-- table data=mine rows=constraint scores=a/b,a/d -->\n<!-- end -->\n"
        "<!-- latents data=mine gallery=G constraint=trained -->\n<!-- end -->\n"
    )
    asked = studies.asked_of("mine", "figure", "chart"), studies.asked_of("mine", "latents", "gallery")
    assert asked == ({"A chart"}, {"G"})
    all_of_it = {"cells": [], "charts": {"A chart": 1, "B": 2}, "galleries": {"G": 3, "H": 4}}
    assert studies.pruned(all_of_it, *asked) == {"cells": [], "charts": {"A chart": 1}, "galleries": {"G": 3}}
    with pytest.raises(KeyError, match=r"charts.*'A chart'.*there are: .*'B'"):
        studies.pruned({**all_of_it, "charts": {"B": 2}}, *asked)
    with pytest.raises(KeyError, match=r"galleries.*'G'.*there are: .*'H'"):
        studies.pruned({**all_of_it, "galleries": {"H": 4}}, *asked)


@pytest.mark.parametrize("path", sorted((DOCS / "studies" / "data").glob("*.json")), ids=lambda path: path.stem)
def test_stored_results_are_those_of_the_preset_in_worlds_as_they_are_drawn_now(studies, path):
    try:
        opened = open_registry(f"preset:{path.stem}", Path("unused"))
    except MissingPackageError as error:
        pytest.skip(str(error))
    cells = [cell for cell in opened.plan.cells if not cell.excluded]
    wanted = {
        c.cell_id: (c.backbone.name, c.architecture.name, c.constraint.name, c.l0, c.seed, c.training.total_steps)
        for c in cells
    }
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["worlds"] == sys.modules["study_data"].worlds(opened), f"{path.name}: run it anew"
    found = {one["id"]: tuple(one[axis] for axis in (*AXES, "seed", "steps")) for one in data["cells"]}
    assert found.items() <= wanted.items(), path.name
    assert len(wanted) == len(found) + data["left"] + data["failed"], path.name
