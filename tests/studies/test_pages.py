"""The studies: tables by hand, and pages that are made from stored results."""

from __future__ import annotations

import json
import re
from statistics import fmean

import pytest

from tests.helpers.studies import AXES, cell


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


def test_a_spread_has_no_more_digits_than_its_mean(studies):
    cells = [cell("topk", "trained", 0, 1240.0), cell("topk", "trained", 1, 1251.0)]
    asked = {"rows": "constraint", "columns": "architecture", "score": "a/b"}
    assert studies.table({"cells": cells, "limits": LIMITS}, asked).splitlines()[2] == "| trained | 1246 ± 8 |"


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


def test_a_table_of_one_seed(studies):
    asked = {"rows": "constraint", "scores": "a/b", "architecture": "topk", "seed": "1"}
    assert studies.table(DATA, asked).splitlines()[2:3] == ["| trained | 0.600 ! |"]
    with pytest.raises(KeyError, match="seed"):
        studies.table(DATA, {**asked, "seed": "7"})


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
