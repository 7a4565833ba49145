"""Pictures of charts: lines lie where their numbers say, labels and names keep apart, series look apart."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, strategies as st

from saebench_core.errors import InputError, PluginError
from saebench_core.interfaces.chart import Chart, ChartPanel, Series
from saebench_core.report import chart_picture, render_html
from saebench_core.report.drawing import BOTTOM, DASHES, HEIGHT, LEFT, RIGHT, TOP, drawn
from saebench_core.report.lines import score_charts
from saebench_core.report.tables import Block, Comparison, Entry, ScoreRow
from tests.helpers.records import metric, record, sweep

EV = "reconstruction/explained_variance"


def test_names_below_the_axis_keep_clear_of_each_other():
    def picture(names):
        places = tuple(float(place) for place in range(len(names)))
        panel = ChartPanel("p", (Series("a", places, places),))
        (found,) = drawn(Chart("t", "c", "x", "y", (panel,), x_names=names))
        return found

    short = picture(("topk", "relu", "gated"))
    assert [tick.lower for tick in short.x_ticks] == [0, 0, 0] and (short.deeper, short.height) == (0, HEIGHT)
    long = picture(("topk", "batch_topk", "jumprelu", "relu", "gated", "p_anneal", "matryoshka", "ortsae"))
    assert [tick.lower for tick in long.x_ticks] == [
        0,
        long.deeper,
    ] * 4 and long.height == HEIGHT + long.deeper > HEIGHT
    for lower in (0, long.deeper):
        ticks = [tick for tick in long.x_ticks if tick.lower == lower]
        for one, other in itertools.pairwise(ticks):
            assert other.x - one.x > 6 * (len(one.text) + len(other.text)) / 2


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.booleans())
def test_points_lie_inside_and_in_the_order_of_their_values(values, log):
    x = tuple(float(place + 1) for place in range(len(values)))
    chart = Chart("t", "c", "x", "y", (ChartPanel("p", (Series("a", x, tuple(values)),)),), x_log=log)
    (picture,) = drawn(chart)
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML](\S+) (\S+)", picture.lines[0].path)]
    assert len(points) == len(values)
    assert all(LEFT < px < RIGHT and TOP <= py <= BOTTOM for px, py in points)
    assert [px for px, _ in points] == sorted(px for px, _ in points)
    for (_, one), (_, other), value, next_value in zip(points, points[1:], values, values[1:], strict=False):
        assert one == pytest.approx(other) or (one > other) == (value < next_value)


def test_levels_and_powers_of_ten_are_drawn():
    x = tuple(10.0**power for power in range(-5, 4))
    panel = ChartPanel("p", (Series("a", x, tuple(range(9)), trained=True),), {"threshold": 4.0, "floor": 0.0})
    (picture,) = drawn(Chart("t", "c", "x", "y", (panel,), x_log=True))
    assert [tick.text for tick in picture.x_ticks][:2] == ["1e-05", "0.0001"]
    places = {level.name: level.y for level in picture.levels}
    line = picture.lines[0].marks
    assert places["threshold"] == line[4].y
    assert places["floor"] == line[0].y
    assert drawn(Chart("t", "c", "x", "y", (ChartPanel("p", ()),))) == []


def test_a_label_keeps_its_style_in_all_panels_and_long_lines_have_no_marks():
    long = tuple(float(place) for place in range(60))
    first = ChartPanel("one", (Series("b", long, long), Series("a", long, long)))
    second = ChartPanel("two", (Series("a", (0.0,), (1.0,)),))
    one, two = drawn(Chart("t", "c", "x", "y", (first, second)))
    styles = {line.label: (line.colour, line.dash) for line in one.lines}
    assert styles["a"] != styles["b"]
    assert (two.lines[0].colour, two.lines[0].dash) == styles["a"]
    assert one.lines[0].marks == ()
    assert len(two.lines[0].marks) == 1


def test_one_place_and_one_label_in_two_roles_can_be_drawn():
    far = ChartPanel("p", (Series("a", (1e9,), (1.0,)), Series("a", (1e9,), (2.0,), trained=True)))
    (picture,) = drawn(Chart("t", "c", "x", "y", (far,)))
    assert {line.colour for line in picture.lines} == {0, 1}
    x = tuple(0.02 + 0.009 * place for place in range(9))
    (within,) = drawn(Chart("t", "c", "x", "y", (ChartPanel("p", (Series("a", x, x),)),), x_log=True))
    assert [tick.text for tick in within.x_ticks] == ["0.02", "0.092"]


def test_pictures_have_two_panels_in_a_row():
    series = Series("a<b", (0.0, 1.0), (0.0, 1.0), trained=True)
    chart = Chart("t", "c", "x", "y", tuple(ChartPanel(name, (series,)) for name in ("one", "two", "three")))
    picture = chart_picture(chart)
    assert 'viewBox="0 0 1240 600"' in picture and picture.count('<text class="head"') == 3
    assert "a&lt;b" in picture and "a<b" not in picture
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert 'viewBox="0 0 620 300"' in chart_picture(chart, ["two"])
    assert all(f".d{dash} path{{stroke-dasharray" in picture for dash in range(1, DASHES))
    with pytest.raises(InputError, match="no panel four; there are: 'one', 'two', 'three'"):
        chart_picture(chart, ["four"])


def test_a_label_looks_the_same_in_all_charts_of_a_page():
    def chart_of(*labels):
        lines = (Series(label, (0.0, 1.0), (0.0, 1.0), trained=label == "trained") for label in labels)
        return Chart(labels[0], "c", "x", "y", (ChartPanel("p", tuple(lines)),))

    def looks(chart, beside=()):
        return {line.label: (line.colour, line.dash) for panel in drawn(chart, beside) for line in panel.lines}

    charts = [chart_of("trained", "frozen", "soft", "free"), chart_of("free", "trained", "ica")]
    first, second = (looks(chart, charts) for chart in charts)
    assert second["free"] == first["free"] and second["trained"] == first["trained"]
    assert len({*first.values(), *second.values()}) == 5
    assert looks(charts[1])["free"] != first["free"]  # alone, a chart begins with the first colour
    cells = [record("toy", "trained", 0, metrics={EV: metric(0.5, "both", "trained")})]
    page = render_html(sweep(cells), cells, charts=charts)
    styles = set(re.findall(r'<g class="line (s\d d\d)">(?:(?!</g>).)*?>free</text>', page, re.DOTALL))
    assert len(styles) == 1


def test_charts_are_escaped():
    evil = "<script>alert(1)</script>"
    panel = ChartPanel(evil, (Series(evil, (0.0, 1.0), (0.0, 1.0), notes=(evil, evil)),), {evil: 0.5})
    cells = [record("toy", "trained", 0, metrics={EV: metric(0.5, "both", "trained")})]
    page = render_html(sweep(cells), cells, charts=[Chart(evil, evil, evil, evil, (panel,))])
    assert evil not in page


@pytest.mark.parametrize("count", [3, 16, 30])
def test_labels_stay_apart_and_in_the_picture(count):
    series = tuple(Series(f"s{place}", (0.0, 1.0), (1.0, 0.0)) for place in range(count))  # all end at the bottom
    (picture,) = drawn(Chart("t", "c", "x", "y", (ChartPanel("p", series),)))
    places = [line.label_y for line in picture.lines]
    assert all(below - above >= 14 for above, below in itertools.pairwise(places))
    assert places[0] >= 12 and places[-1] < picture.height
    assert (picture.height > 276) == (count == 30)  # where labels can move up, the picture stays as it is


def test_marks_that_carry_a_flag_are_hollow():
    entries = [Entry("trained", "iso", True, {0: 0.5}, flags=flags) for flags in ({}, {"not_converged": 1})]
    rows = [ScoreRow("a/b", "higher", "share", "encoder", (1,), None, None, (entry,)) for entry in entries]
    blocks = [Block("toy", "site", "topk", l0) for l0 in (2.0, 4.0)]
    found = [Comparison(block, ("trained",), (0,), (row,)) for block, row in zip(blocks, rows, strict=True)]
    (chart,) = score_charts(found, [], "a/b")[:1]
    (series,) = chart.panels[0].series
    assert series.hollow == (False, True)
    assert series.notes[1].endswith("(n=1); not_converged") and "hollow marks carry a flag" in chart.caption
    picture = chart_picture(chart)
    assert picture.count('class="hollow"') == 1 and ElementTree.fromstring(picture) is not None
    with pytest.raises(PluginError, match="series 'a'"):
        Series("a", (1.0, 2.0), (1.0, 2.0), hollow=(True,))


def test_series_look_apart():
    trained = [Series(f"t{place}", (0.0,), (1.0,), trained=True) for place in range(3)]
    others = [Series(f"o{place}", (0.0,), (1.0,)) for place in range(25)]
    (picture,) = drawn(Chart("t", "c", "x", "y", (ChartPanel("p", (*trained, *others)),)))
    assert len({(line.colour, line.dash) for line in picture.lines}) == 28
    assert {line.colour for line in picture.lines if line.trained} == {0}
