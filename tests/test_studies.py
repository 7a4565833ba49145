"""The studies: tables by hand, and pages that are made from stored results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.helpers.registries import TINY
from tests.helpers.runs import run

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("make_studies", DOCS / "make_studies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_pages_are_what_the_stored_results_make_of_them(studies):
    assert list(studies.FOLDER.glob("*.md")) and studies.write(check=True) == []
    pictures = {path.name for path in (studies.FOLDER / "images").iterdir()}
    wanted = {
        name
        for path in studies.FOLDER.glob("*.md")
        for name in studies.filled(path.stem, path.read_text(encoding="utf-8"))[1]
    }
    assert pictures == wanted


def cell(architecture, constraint, seed, value, flags=()):
    return {
        "backbone": "toy",
        "architecture": architecture,
        "constraint": constraint,
        "l0": 5.0,
        "seed": seed,
        "flags": list(flags),
        "scores": {"a/b": value, "a/c": 10 * value},
        "floors": {"a/b": 0.125, "a/c": seed},
        "ceilings": {"a/b": 1.0} if architecture == "topk" else {},
    }


CELLS = [
    cell("topk", "trained", 0, 0.8),
    cell("topk", "trained", 1, 0.6, ["not_converged"]),
    cell("topk", "frozen", 0, 0.25),
    cell("relu", "trained", 0, 0.5, ["collapsed"]),
]


def test_a_table_of_one_score_by_hand(studies):
    asked = {"rows": "constraint", "columns": "architecture", "score": "a/b", "paper": "topk:0.71"}
    assert studies.table(CELLS, asked).splitlines() == [
        "| constraint | topk | relu |",
        "|---|---|---|",
        "| trained | 0.700 ± 0.141 ! | 0.500 † |",
        "| frozen | 0.250 |  |",
        "| *floor* | 0.125 | 0.125 |",
        "| *ceiling* | 1.000 |  |",
        "| *the paper* | 0.71 |  |",
    ]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"rows": "constraint", "scores": "a/typo"}, KeyError),
        ({"rows": "constraint", "scores": "a/b", "architecture": "typo"}, KeyError),
        ({"rows": "constraint", "scores": "a/b"}, ValueError),  # two architectures of one seed
    ],
)
def test_a_table_that_would_answer_another_question_is_refused(studies, asked, error):
    with pytest.raises(error):
        studies.table(CELLS, asked)


def test_a_table_of_several_scores_of_chosen_cells(studies):
    asked = {"rows": "constraint", "scores": "a/b,a/c", "architecture": "topk", "constraint": "frozen"}
    assert studies.table(CELLS, asked).splitlines()[2:] == [
        "| frozen | 0.250 | 2.500 |",
        "| *floor* | 0.125 | 0.000 |",
        "| *ceiling* | 1.000 |  |",
    ]


def test_what_was_run_is_counted(studies):
    mine = {"cells": [{**one, "steps": 1000 * (1 + one["seed"])} for one in CELLS], "left": 2, "hours": 0.5}
    assert studies.runs({"mine": mine}).splitlines()[2:] == ["| mine | 4 | 2 | 0, 1 | 1,000 ... 2,000 | 1 | 1 | 0.5 |"]


def test_a_floor_that_differs_between_cells_is_not_told(studies):
    asked = {"rows": "constraint", "columns": "architecture", "score": "a/c", "architecture": "topk"}
    assert "floor" not in studies.table(CELLS, asked)


def test_a_page_is_filled_from_what_is_stored_and_nothing_else_changes(studies, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "FOLDER", tmp_path)
    (tmp_path / "data").mkdir()
    series = {"label": "a<b", "x": [1, 2], "y": [0, 1], "trained": True, "spread": [], "notes": []}
    panels = [{"title": "p", "series": [series], "levels": {"floor": 0.5}}]
    chart = {
        "title": "A chart",
        "caption": "c",
        "x_label": "x",
        "y_label": "y",
        "panels": panels,
        "x_log": False,
        "x_names": [],
    }
    stored = {"cells": CELLS, "charts": {"A chart": chart}}
    (tmp_path / "data" / "mine.json").write_text(json.dumps(stored))
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- table data=mine rows=constraint scores=a/b architecture=relu -->\nold\n<!-- end -->\n\n"
        'between\n\n<!-- figure data=mine chart="A chart" -->\n<!-- end -->\n\nafter\n'
    )
    assert studies.write(check=True) == ["page.md", "images/page-mine-a-chart.svg"]
    assert "old" in page.read_text()
    assert studies.write(check=False) == ["page.md", "images/page-mine-a-chart.svg"]
    text = page.read_text()
    assert "| trained | 0.500 † |" in text and "old" not in text
    assert "![A chart](images/page-mine-a-chart.svg)" in text
    assert text.startswith("# Title\n") and "\nbetween\n" in text and text.endswith("after\n")
    assert studies.write(check=True) == []
    picture = (tmp_path / "images" / "page-mine-a-chart.svg").read_text()
    assert "a&lt;b" in picture and "a<b" not in picture
    page.write_text(text.replace("0.500 †", "0.501 †"))
    assert studies.write(check=True) == ["page.md"]


def test_what_a_run_has_is_stored(studies, tmp_path):
    (tmp_path / "registry.yaml").write_text(TINY)
    assert run(tmp_path).code == 0
    found = studies.collect(str(tmp_path / "registry.yaml"), tmp_path / ".saebench")
    assert (len(found["cells"]), found["left"]) == (8, 0)
    first = found["cells"][0]
    assert (first["constraint"], first["seed"], first["steps"]) == ("trained", 0, 20)
    assert first["scores"]["reconstruction/l0"] == 3.0
    assert "Best cosine of every true feature, sorted" in found["charts"]
    assert json.loads(json.dumps(found)) == found


def test_of_charts_and_floors_is_kept_what_pages_ask_for(studies, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "FOLDER", tmp_path)
    (tmp_path / "page.md").write_text(
        '<!-- figure data=mine chart="A chart" -->\n<!-- end -->\n'
        "<!-- table data=mine rows=constraint scores=a/b,a/d -->\n<!-- end -->\n"
        "<!-- table data=yours rows=constraint columns=architecture score=a/c -->\n<!-- end -->\n"
    )
    assert studies.asked_of("mine") == ({"A chart"}, {"a/b", "a/d"})
    assert studies.asked_of("yours") == (set(), {"a/c"})
    kept = studies.pruned({"cells": CELLS, "charts": {"A chart": 1, "B": 2}}, *studies.asked_of("mine"))
    assert kept["charts"] == {"A chart": 1}
    with pytest.raises(KeyError, match="'A chart'.*there are: .*'B'"):
        studies.pruned({"cells": CELLS, "charts": {"B": 2}}, *studies.asked_of("mine"))
    assert kept["cells"][0] == {**CELLS[0], "floors": {"a/b": 0.125}}
