"""The studies: tables by hand, and pages that are made from stored results."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from statistics import fmean

import pytest

from saebench_core.api import open_registry
from tests.helpers.registries import TINY
from tests.helpers.runs import run

DOCS = Path(__file__).parents[1] / "docs"
AXES = ("backbone", "architecture", "constraint", "l0")


@pytest.fixture(scope="module")
def studies():
    sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location("make_studies", DOCS / "make_studies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DOCS))
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


SHARE = re.compile(r"(?<![\d.])\d\.\d{3}(?!\d)")


def test_shares_in_a_page_s_text_stand_in_its_tables(studies):
    for path in studies.FOLDER.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        tables = " ".join(match.group() for match in studies.MARKED.finditer(text) if match.group(1) == "table")
        told = set(SHARE.findall(studies.MARKED.sub("", text)))
        assert told and told <= set(SHARE.findall(tables))


NUMBER = r"\d{1,3}(?:,\d{3})*"
COUNTED = re.compile(
    rf"((?:{NUMBER}(?:, | and | instead of ))*{NUMBER}) (?:features|latents that fire|of its latents fire)\b"
)
FEATURES = 3200


def test_counts_of_features_and_latents_in_the_toy_world_s_text_are_stored_ones(studies):
    stored = [studies.FOLDER / "data" / f"paper-synthetic{name}.json" for name in ("", "-long", "-settings", "-steps")]
    cells = [cell for path in stored for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    settings: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for one in cells:
        settings.setdefault((*(str(one[axis]) for axis in AXES), str(one["steps"])), []).append(one["scores"])
    names = [f"feature_recovery/fraction_{at}" for at in ("0.7", "0.8", "0.9")]
    found = set()
    for seeds in settings.values():
        for told in (*([one] for one in seeds), seeds):  # each seed, and the mean that tables have
            found |= {round(FEATURES * fmean(one[name] for one in told)) for name in names}
            found.add(round(FEATURES * fmean(1 - one["feature_firing/silent"] for one in told)))
    text = studies.MARKED.sub("", (studies.FOLDER / "synthetic.md").read_text(encoding="utf-8"))
    paper = {297, 225, 1380}
    told = [int(n.replace(",", "")) for run in COUNTED.findall(text) for n in re.findall(NUMBER, run)]
    assert len(told) > 15
    assert set(told) - paper - {FEATURES} <= found


def cell(architecture, constraint, seed, value, flags=()):
    return {
        "backbone": "toy",
        "architecture": architecture,
        "constraint": constraint,
        "l0": 5.0,
        "seed": seed,
        "flags": list(flags),
        "scores": {"a/b": value, "a/c": 10 * value},
    }


CELLS = [
    cell("topk", "trained", 0, 0.8),
    cell("topk", "trained", 1, 0.6, ["not_converged"]),
    cell("topk", "trained", 2, -9.0, ["collapsed", "missed_l0"]),
    cell("topk", "frozen", 0, 0.25, ["missed_l0"]),
    cell("relu", "trained", 0, 0.5, ["collapsed"]),
    {**cell("relu", "trained", 0, 0.75), "backbone": "other"},
]
LIMITS = {"toy": {"floor": {"a/b": 0.125}, "ceiling": {"a/b": 1.0}}, "other": {"floor": {"a/b": 0.5}, "ceiling": {}}}
DATA = {"cells": CELLS, "limits": LIMITS}


def test_a_table_of_one_score_by_hand(studies):
    asked = {
        "rows": "constraint",
        "columns": "architecture",
        "score": "a/b",
        "paper": "topk:0.71",
        "backbone": "toy",
    }
    assert studies.table(DATA, asked).splitlines() == [
        "| constraint | topk | relu |",
        "|---|---|---|",
        "| trained | 0.700 ± 0.141 ! (2 of 3) | 0.500 † |",
        "| frozen | 0.250 ‡ |  |",
        "| *floor* | 0.125 | 0.125 |",
        "| *ceiling* | 1.000 | 1.000 |",
        "| *the paper* | 0.71 |  |",
    ]


def test_a_row_that_comes_late_stands_behind_its_neighbour(studies):
    names = [("topk", "trained"), ("topk", "soft"), ("topk", "true"), ("relu", "trained"), ("relu", "softer")]
    names += [("gated", "soft"), ("gated", "softest"), ("gated", "true")]
    data = {"cells": [cell(*name, 0, 0.5) for name in names], "limits": {"toy": {"floor": {}, "ceiling": {}}}}
    made = studies.table(data, {"rows": "constraint", "columns": "architecture", "score": "a/b"}).splitlines()
    assert [line.split(" | ")[0] for line in made[2:]] == ["| trained", "| softer", "| soft", "| softest", "| true"]
    assert made[0] == "| constraint | topk | relu | gated |"


def test_shares_are_told_as_counts(studies):
    asked = {"rows": "constraint", "scores": "a/b", "architecture": "topk", "constraint": "frozen", "times": "3200"}
    assert studies.table(DATA, asked).splitlines()[2:] == [
        "| frozen | 800 ‡ |",
        "| *floor* | 400 |",
        "| *ceiling* | 3,200 |",
    ]


ASKED = {"score": "a/b", "beside": "a/c", "constraint": "trained", "named": "found", "times": "100"}


def test_where_most_was_reached_by_hand(studies):
    plain = [
        {**cell("topk", "trained", 0, 0.5), "backbone": "fast", "steps": 1000},
        {**cell("topk", "trained", 1, 0.7), "backbone": "fast", "steps": 1000},
        {**cell("topk", "trained", 0, 0.65, ["missed_l0"]), "backbone": "slow", "steps": 2000},
        {**cell("topk", "frozen", 0, 0.99), "backbone": "slow", "steps": 2000},
        {**cell("relu-wide", "trained", 0, 0.25), "backbone": "slow", "steps": 2000},
    ]
    other = [{**cell("topk", "trained", 0, 0.64), "backbone": "fast", "steps": 1000}]
    heads = ["| architecture | found | the paper | c | steps | setting |", "|---|---|---|---|---|---|"]
    found = {"one": {"cells": plain}, "two": {"cells": other}}
    assert studies.best(found, {**ASKED, "paper": "relu:≈30"}).splitlines() == [
        *heads,
        "| topk | 65 ‡ |  | 6.500 ‡ | 2,000 | `slow` of `one` |",
        "| relu | 25 | ≈30 | 2.500 | 2,000 | `slow` of `one`, `relu-wide` |",
    ]
    found = {"one:fast": {"cells": plain}, "two": {"cells": other}}
    assert studies.best(found, ASKED).splitlines() == [*heads, "| topk | 64 |  | 6.400 | 1,000 | `fast` of `two` |"]
    found = {"one:fast": {"cells": plain}}
    assert (
        studies.best(found, ASKED).splitlines()[2] == "| topk | 60 ± 14 |  | 6.000 ± 1.414 | 1,000 | `fast` of `one` |"
    )
    found = {
        "one": {"cells": [*plain, {**cell("topk", "trained", 2, 0.0, ["collapsed"]), "backbone": "fast", "steps": 9}]}
    }
    told = studies.best(found, {**ASKED, "without": "slow"}).splitlines()
    assert told[2] == "| topk | 60 ± 14 (2 of 3) |  | 6.000 ± 1.414 (2 of 3) | 1,000 | `fast` of `one` |"
    for wrong in ({"constraint": "typo"}, {"score": "a/typo"}, {"without": "fast,slow"}):
        with pytest.raises(KeyError):
            studies.best(found, {**ASKED, **wrong})
    with pytest.raises(KeyError, match="one:typo"):
        studies.best({"one:typo": {"cells": plain}, "two": {"cells": other}}, ASKED)


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
        studies.table(DATA, asked)


def test_a_table_of_several_scores_of_chosen_cells(studies):
    asked = {"rows": "constraint", "scores": "a/b,a/c", "architecture": "topk", "constraint": "frozen"}
    assert studies.table(DATA, asked).splitlines()[2:] == [
        "| frozen | 0.250 ‡ | 2.500 ‡ |",
        "| *floor* | 0.125 |  |",
        "| *ceiling* | 1.000 |  |",
    ]


def test_what_was_run_is_counted(studies):
    mine = {**DATA, "cells": [{**one, "steps": 1000 * (1 + one["seed"]), "seconds": 300.0} for one in CELLS]}
    assert studies.runs({"mine": {**mine, "left": 4, "failed": 5}}).splitlines() == [
        "| preset | cells | to run | failed | seed | steps | collapsed | not converged | missed l0 | hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| mine | 6 | 4 | 5 | 0, 1, 2 | 1,000 ... 3,000 | 2 | 1 | 2 | 0.5 |",
    ]


@pytest.mark.parametrize("backbones", ["toy,other", "other"])
def test_a_limit_that_differs_or_is_not_known_is_not_told(studies, backbones):
    asked = {"rows": "backbone", "columns": "architecture", "score": "a/b", "architecture": "relu"}
    lines = studies.table(DATA, {**asked, "backbone": backbones}).splitlines()
    assert not any("ceiling" in line for line in lines)
    assert ("| *floor* | 0.500 |" in lines) == (backbones == "other")


def test_a_page_is_filled_from_what_is_stored_and_nothing_else_changes(studies, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "FOLDER", tmp_path)
    (tmp_path / "data").mkdir()
    series = {"label": "a<b", "x": [1, 2], "y": [0, 1], "trained": True, "spread": [], "notes": [], "hollow": []}
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
    stored = {**DATA, "charts": {"A chart": chart}}
    (tmp_path / "data" / "mine.json").write_text(json.dumps(stored))
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- table data=mine rows=constraint scores=a/b architecture=relu backbone=toy -->\n"
        "old\n<!-- end -->\n\n"
        'between\n\n<!-- figure data=mine chart="A chart" -->\n<!-- end -->\n\nafter\n'
    )
    assert studies.write(check=True) == ["page.md", "images/page-mine-a-chart.svg"]
    assert "old" in page.read_text()
    assert studies.write(check=False) == ["page.md", "images/page-mine-a-chart.svg"]
    text = page.read_text()
    assert "| trained | 0.500 † |" in text and "old" not in text
    assert "![A chart](images/page-mine-a-chart.svg)\n\n*A chart: y against x; c.*" in text
    assert text.startswith("# Title\n") and "\nbetween\n" in text and text.endswith("after\n")
    assert studies.write(check=True) == []
    picture = (tmp_path / "images" / "page-mine-a-chart.svg").read_text()
    assert "a&lt;b" in picture and "a<b" not in picture
    page.write_text(text.replace("0.500 †", "0.501 †"))
    assert studies.write(check=True) == ["page.md"]
    open_ended = text.replace("<!-- end -->", "", 1)
    page.write_text(open_ended)
    with pytest.raises(ValueError, match=r"page: <!-- table .* has no <!-- end -->"):
        studies.write(check=False)
    assert page.read_text() == open_ended  # nothing between two markers is lost


def test_a_figure_shows_the_series_that_are_asked_for(studies):
    lines = [
        {"label": name, "x": [1, 2], "y": [0, 1], "trained": False, "spread": [], "notes": [], "hollow": []}
        for name in "pq"
    ]
    plain = {"title": "t", "caption": "c", "x_label": "x", "y_label": "y", "x_log": False, "x_names": []}
    plain["panels"] = [{"title": "one", "series": lines, "levels": {}}]

    def figure(plain, asked):
        return studies.figure(studies.chosen_chart(plain, asked), asked)

    assert ">p</text>" in figure(plain, {})[0]
    picture, caption = figure(plain, {"series": "q"})
    assert ">q</text>" in picture and ">p</text>" not in picture and caption == "*t: y against x; c.*"
    assert figure({**plain, "title": "y by x"}, {})[1] == "*y by x; c.*"
    with pytest.raises(KeyError, match=r"'typo'.*there are: .*'p', 'q'"):
        figure(plain, {"series": "typo"})


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
    backbone = same["cells"][0]["backbone"]
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
        plain = {"registry": "r", "versions": {}, "charts": {}, "worlds": {"toy": "w"}, "limits": limits}
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
        }

    names = {"backbone": "usual", "architecture": "mine", "constraint": "as-it-is"}
    wanted = {**stored("usual", 0.0, "1"), "cells": [], "order": dict.fromkeys("ab", names), "failed": [], "charts": {}}
    found = studies.merged(
        wanted, stored("usual", 0.5, "2", a=1.0), [stored("variable", 0.5, "3", a=9.0, b=2.0, c=3.0)]
    )
    assert [(row["id"], row["scores"]["a/b"], row["seconds"]) for row in found["cells"]] == [
        ("a", 1.0, 2.0),
        ("b", 2.0, 0),
    ]
    assert all(row.items() >= names.items() for row in found["cells"])
    assert found["versions"] == {"torch": ["2", "3"]} and found["limits"]["usual"]["floor"] == {"a/b": 0.5}
    assert (found["left"], found["charts"]) == (0, {"C": 1})
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
    )
    assert studies.charts_asked("mine") == {"A chart"}
    assert studies.pruned({**DATA, "charts": {"A chart": 1, "B": 2}}, {"A chart"}) == {**DATA, "charts": {"A chart": 1}}
    with pytest.raises(KeyError, match=r"'A chart'.*there are: .*'B'"):
        studies.pruned({"charts": {"B": 2}}, {"A chart"})


def test_stored_results_are_those_of_the_presets_in_worlds_as_they_are_drawn_now(studies):
    for path in sorted((studies.FOLDER / "data").glob("*.json")):
        opened = open_registry(f"preset:{path.stem}", Path("unused"))
        cells = [cell for cell in opened.plan.cells if not cell.excluded]
        wanted = {
            c.cell_id: (c.backbone.name, c.architecture.name, c.constraint.name, c.l0, c.seed, c.training.steps)
            for c in cells
        }
        data = json.loads(path.read_text(encoding="utf-8"))
        assert data["worlds"] == sys.modules["study_data"].worlds(opened), f"{path.name}: run it anew"
        found = {one["id"]: tuple(one[axis] for axis in (*AXES, "seed", "steps")) for one in data["cells"]}
        assert found.items() <= wanted.items(), path.name
        assert len(wanted) == len(found) + data["left"] + data["failed"], path.name
