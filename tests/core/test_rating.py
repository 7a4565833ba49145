"""Latents rated by people who do not know whose they are: what the sheet shows and hides, and what is read back."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saebench_core import Card, Column, Excerpt, Gallery
from saebench_core.api import read_ratings
from saebench_core.errors import InputError
from saebench_core.report import SCALE, blinded, key_of, render_sheet, sheet_digest
from tests.helpers.registries import call, changed

PLUGIN = """
from typing import Literal
from saebench_core import (
    Card, Column, Excerpt, Gallery, Metric, MetricConfig, MetricSpec, Prepared, Score, Scored, ScoreInfo, hookimpl
)

class MineConfig(MetricConfig):
    type: Literal["mine"] = "mine"

class Mine(Metric):
    def __init__(self, config):
        pass
    def scores(self):
        return {"one": ScoreInfo("none", "1", None, None, "both", "one", "none")}
    def applicable(self, backbone):
        return None
    def prepare(self, context):
        return Prepared()
    def score(self, subject, prepared, context):
        return Scored({"one": Score(1.0, 1)}, {"latent": [5, 6, 7]})
    def to_rate(self, found, count):
        columns = {}
        for cell in found:
            cards = tuple(
                Card(f"latent {latent}", "never shown", "", (Excerpt((f"{latent} ", "<i>"), (0.5, 0.0)),), latent / 10)
                for latent in cell.items["latent"][:count]
            )
            columns.setdefault(cell.constraint, Column(cell.constraint, cards, cell.trained))
        return [Gallery("toy", "", tuple(columns.values()))]

@hookimpl
def register_metrics():
    return [MetricSpec(config=MineConfig, build=Mine, summary="one")]
"""


def gallery(title="lm / s · topk", count=4):
    def column(name, trained):
        cards = tuple(
            Card(f"latent {number}", "a secret", "accuracy 1.00", (Excerpt((name[0], f"{number}"), (0.0, 1.0)),), 0.5)
            for number in range(count)
        )
        return Column(name, cards, trained)

    return Gallery(title, "", (column("xtrained", True), column("yrandom", False)))


def test_latents_are_mixed_and_each_is_there_once():
    items = blinded([gallery(), gallery("other")], 0)
    assert len({(item.group, item.constraint, item.latent) for item in items}) == len(items) == 16
    assert items == blinded([gallery(), gallery("other")], 0)
    assert items != blinded([gallery(), gallery("other")], 1)
    halves = [sum(item.trained for item in items[:8]), sum(item.trained for item in items[8:])]
    assert min(halves) >= 2
    assert sheet_digest(items) != sheet_digest(items[::-1])


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.asked = []
        self.radios = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.asked += [value for name, value in attrs if name in {"src", "href", "action"}]
        if found.get("type") == "radio":
            self.radios.append((found["name"], found["value"]))


def test_the_sheet_shows_places_alone():
    items = blinded([gallery()], 0)
    text = render_sheet(items)
    for word in ("trained", "random", "latent", "secret", "accuracy", "topk", "lm / s"):
        assert word not in text.replace("in random order", "")
    reader = Reader()
    reader.feed(text)
    assert reader.asked == []
    assert not re.search(r"url\(|@import|https?://|<link|<iframe|<img", text)
    assert reader.radios == [(str(number), str(value)) for number in range(1, 9) for value in range(1, 6)]
    for words in SCALE:
        assert text.count(words) == 8
    marks = re.findall(r'<mark style="--s:100%">(\d)</mark>', text)
    assert marks == [item.latent.split()[1] for item in items]


def test_pieces_of_text_are_escaped():
    evil = Gallery("g", "", (Column("c", (Card("l", "", "", (Excerpt(("</script><script>", "b"), (0.0, 1.0)),)),)),))
    assert "&lt;/script&gt;&lt;script&gt;" in render_sheet(blinded([evil], 0))


def saved(folder, name, items, chosen, **changes):
    """Write what a browser would save."""
    path = folder / f"{name}.json"
    document = {"schema": 1, "sheet": sheet_digest(items), "rater": name, "ratings": chosen}
    path.write_text(json.dumps(document | changes))
    return path


def keyed(folder, items):
    reports = folder / "reports"
    reports.mkdir()
    (reports / f"x-rating-{sheet_digest(items)}.key.json").write_text(json.dumps(key_of(items)))


def test_ratings_by_hand(tmp_path):
    items = blinded([gallery()], 0)
    keyed(tmp_path, items)
    mine = [number for number, item in enumerate(items, 1) if item.trained]
    twins = [number for number, item in enumerate(items, 1) if not item.trained]
    one = saved(tmp_path, "one", items, dict(zip(mine, (5, 5, 4, 3), strict=True)) | dict.fromkeys(twins, 2))
    two = saved(tmp_path, "two", items, {mine[0]: 3, twins[0]: 4})
    found = read_ratings(tmp_path, [one, two])
    trained, random = found.rows
    assert (trained.constraint, trained.latents, trained.gap) == ("xtrained", 4, None)
    assert trained.mean == pytest.approx((4 + 5 + 4 + 3) / 4)
    assert trained.clear == 3 / 4
    assert random.mean == pytest.approx((3 + 2 + 2 + 2) / 4)
    assert random.clear == 0
    assert random.gap == pytest.approx(4 - 2.25)
    low, high = random.interval
    assert 0.9 < low < 1.75 < high < 2.6
    assert found.apart == pytest.approx((2 + 2) / 2)
    assert found.rank_correlations == {}  # all scores are alike
    assert found == read_ratings(tmp_path, [one, two])
    alone = read_ratings(tmp_path, [two])
    assert (alone.raters, alone.apart, alone.rows[1].interval) == (1, None, None)


def test_ratings_beside_scores(tmp_path):
    cards = tuple(Card(f"latent {number}", "", "", (), number / 10) for number in range(4))
    items = blinded([Gallery("g", "", (Column("trained", cards, True),))], 0)
    keyed(tmp_path, items)
    order = {number: round(10 * item.score) + 1 for number, item in enumerate(items, 1)}
    assert read_ratings(tmp_path, [saved(tmp_path, "a", items, order)]).rank_correlations == {"g": pytest.approx(1)}
    turned = {number: 6 - value for number, value in order.items()}
    assert read_ratings(tmp_path, [saved(tmp_path, "b", items, turned)]).rank_correlations == {"g": pytest.approx(-1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratings": {"1": 6}}, r"ratings\.1: Input should be less than or equal to 5"),
        ({"ratings": {"1": 2.5}}, r"ratings\.1"),
        ({"ratings": {"99": 1}}, "rates number 99, but the sheet has 1 to 8"),
        ({"ratings": {}}, "nothing is rated"),
        ({"sheet": "0" * 12}, "has no key of sheet 000000000000"),
        ({"sheet": "../../etc"}, "sheet: String should match"),
        ({"schema": 2}, "schema"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_rating_is_refused(tmp_path, changes, message):
    items = blinded([gallery()], 0)
    keyed(tmp_path, items)
    with pytest.raises(InputError, match=message):
        read_ratings(tmp_path, [saved(tmp_path, "a", items, {"1": 1}, **changes)])


def test_the_first_trained_sae_is_what_others_are_held_to(tmp_path):
    def column(name, trained):
        return Column(name, tuple(Card(f"latent {number}", "", "", ()) for number in range(3)), trained)

    galleries = [Gallery("g", "", (column("trained", True), column("trained-cov", True), column("untrained", False)))]
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        items = blinded(galleries, seed)
        keyed(folder, items)
        worth = {"trained": 5, "trained-cov": 3, "untrained": 1}
        ratings = {number: worth[item.constraint] for number, item in enumerate(items, 1)}
        rows = read_ratings(folder, [saved(folder, "a", items, ratings)]).rows
        assert [(row.constraint, row.gap) for row in rows] == [("trained", None), ("trained-cov", 2), ("untrained", 4)]


def test_one_person_counts_once(tmp_path):
    items = blinded([gallery()], 0)
    keyed(tmp_path, items)
    first = saved(tmp_path, "a", items, {"1": 1, "2": 2})
    with pytest.raises(InputError, match="ratings of the same person"):
        read_ratings(tmp_path, [first, saved(tmp_path, "b", items, {"1": 1, "2": 2}, rater="")])
    with pytest.raises(InputError, match="ratings of the same person"):
        read_ratings(tmp_path, [first, saved(tmp_path, "c", items, {"1": 5}, rater="a")])
    assert read_ratings(tmp_path, [first, saved(tmp_path, "d", items, {"1": 5})]).raters == 2
    assert read_ratings(tmp_path, [first, saved(tmp_path, "e", items, {"1": 1, "2": 2})]).apart == 0


def test_a_damaged_key_is_told(tmp_path):
    items = blinded([gallery()], 0)
    keyed(tmp_path, items)
    next((tmp_path / "reports").glob("*.key.json")).write_text("{}")
    with pytest.raises(InputError, match="no key of a sheet any more"):
        read_ratings(tmp_path, [saved(tmp_path, "a", items, {"1": 1})])


def test_files_are_of_one_sheet_and_can_be_read(tmp_path):
    items = blinded([gallery()], 0)
    keyed(tmp_path, items)
    good = saved(tmp_path, "a", items, {"1": 1})
    with pytest.raises(InputError, match="ratings of 2 sheets"):
        read_ratings(tmp_path, [good, saved(tmp_path, "b", items, {"1": 1}, sheet="0" * 12)])
    with pytest.raises(InputError, match="cannot be read"):
        read_ratings(tmp_path, [tmp_path / "none.json"])
    (tmp_path / "c.json").write_text("<html>")
    with pytest.raises(InputError, match="no ratings as a sheet saves them"):
        read_ratings(tmp_path, [tmp_path / "c.json"])


def test_from_run_to_ratings_at_the_command_line(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    (tmp_path / "registry.yaml").write_text(changed(("  - {type: feature_recovery}", "  - {type: mine}")))
    before = call("--plugin-file", plugin, "ratings", "sheet", cwd=tmp_path)
    assert (before.code, "no cell has latents to rate" in before.err) == (2, True)
    assert call("--plugin-file", plugin, "run", "--no-tracking", cwd=tmp_path).code == 0
    made = call("--plugin-file", plugin, "ratings", "sheet", "--latents", "2", cwd=tmp_path)
    assert made.code == 0, made.err
    sheet = Path(tmp_path / made.out.strip())
    text = sheet.read_text(encoding="utf-8")
    assert text.count("<article") == 4 * 2
    assert "&lt;i&gt;" in text and "frozen" not in text
    key = json.loads(sheet.with_suffix(".key.json").read_text())
    ratings = {str(number): 5 if item["trained"] else 2 for number, item in enumerate(key["items"], 1)}
    (tmp_path / "mine.json").write_text(
        json.dumps({"schema": 1, "sheet": key["sheet"], "rater": "", "ratings": ratings})
    )
    read = call("ratings", "read", "mine.json", cwd=tmp_path)
    assert read.code == 0, read.err
    assert re.search(r"trained +2 +5\.00 +100%", read.out)
    assert re.search(r"untrained +2 +2\.00 +0% +\+3\.00", read.out)
    assert "one person" in read.out
    document = json.loads(call("ratings", "read", "mine.json", "--json", cwd=tmp_path).out)
    assert document["rows"][0]["constraint"] == "trained"
    assert call("ratings", "read", "none.json", cwd=tmp_path).code == 2
    other = call("--plugin-file", plugin, "ratings", "sheet", "--metric", "mime", cwd=tmp_path)
    assert (other.code, "no metric is called so; there are reconstruction, mine" in other.err) == (2, True)
    none = call("ratings", "read", cwd=tmp_path)
    assert none.code == 2
