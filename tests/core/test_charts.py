"""Charts: what varies in a sweep is found, lines lie where their numbers say, metrics draw their own items."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from saebench_plugins.metrics._recovery_charts import recovery_charts

from saebench_core.errors import PluginError
from saebench_core.interfaces.chart import Chart, ChartPanel, Observed, Series
from saebench_core.report import comparisons, drift_charts
from saebench_core.report.drawing import drawn
from saebench_core.report.lines import score_charts, varying
from saebench_core.results import EntryRef
from tests.helpers.records import metric, record
from tests.helpers.registries import call, changed
from tests.helpers.runs import run

EV = "reconstruction/explained_variance"


def cell(constraint, value, backbone=None, architecture=None, l0=20.0, seed=0, direction="higher"):
    """A cell whose backbone and architecture have these configurations."""
    found = record("toy", constraint, seed, metrics={EV: metric(value, "both", constraint, direction=direction)})
    changes = {"l0_target": l0, "cell_id": f"{constraint} {backbone} {architecture} {l0} {seed}"}
    if backbone is not None:
        changes["backbone"] = EntryRef(name=str(backbone), type="synthetic", config=backbone)
    if architecture is not None:
        changes["architecture"] = EntryRef(name=str(architecture), type="topk", config=architecture)
    return found.model_copy(update={"result": found.result.model_copy(update=changes)})


def charts(cells):
    return score_charts(comparisons(cells), cells, EV)


@pytest.mark.parametrize(
    ("entries", "key"),
    [
        ([{"n": 1, "p": 9}, {"n": 2, "p": 9}], "n"),
        ([{"n": 1, "p": 8}, {"n": 4, "p": 2}, {"n": 2, "p": 4}], "n"),  # p falls as n rises
        ([{"n": 1, "p": 1}, {"n": 2, "p": 3}, {"n": 3, "p": 2}], None),  # two things differ
        ([{"n": 1, "p": 1}, {"n": 1, "p": 2}, {"n": 2, "p": 3}], None),  # n alone does not tell entries apart
        ([{"p": 1}, {"p": 2, "q": 5}], "p"),  # what only some have does not count
        ([{"n": 1}, {"n": 1}], None),
        ([{"n": 1}], None),
        ([], None),
    ],
)
def test_what_varies_is_the_first_number_that_orders_all_entries(entries, key):
    assert varying({str(index): entry for index, entry in enumerate(entries)}) == key


def test_backbones_that_differ_in_a_nested_number_are_a_map():
    worlds = [{"d_in": 8, "probability": {"type": "constant", "p": p}, "l0": [p * 100]} for p in (0.1, 0.2, 0.8)]
    values = {"trained": (0.9, 0.8, 0.5), "frozen_decoder": (0.5, 0.4, 0.3)}
    cells = [
        cell(name, value, backbone=world, l0=world["l0"][0], seed=seed)
        for name, numbers in values.items()
        for world, value in zip(worlds, numbers, strict=True)
        for seed in (0, 1)
    ]
    (chart,) = charts(cells)
    assert (chart.x_label, chart.x_log) == ("probability.p", True)
    (panel,) = chart.panels
    assert panel.title == "batch_topk · activations"
    assert [(line.label, line.x, line.y) for line in panel.series] == [
        (name, (0.1, 0.2, 0.8), numbers) for name, numbers in values.items()
    ]
    assert panel.series[0].notes[2] == "trained, probability.p 0.8: 0.500 ± 0.000 (n=2)"
    assert chart.caption == "mean and standard deviation over seeds"


def test_sites_of_one_backbone_are_panels_of_a_map():
    worlds = [{"noise": noise} for noise in (0.0, 0.5)]
    cells = []
    for world in worlds:
        for site in ("a", "b"):
            found = cell("trained", 0.5, backbone=world)
            cells.append(found.model_copy(update={"result": found.result.model_copy(update={"site": site})}))
    (chart,) = charts(cells)
    assert [panel.title for panel in chart.panels] == ["batch_topk · a", "batch_topk · b"]
    assert chart.caption == "one seed"


def test_a_longer_training_is_an_axis_and_a_seed_is_none():
    worlds = [{"name": name, "seed": number} for number, name in enumerate("abc")]
    cells = [cell("trained", 0.1 * place, backbone=world) for place, world in enumerate(worlds)]
    assert charts(cells) == []
    longer = [one.model_copy(update={"params": one.params | {"steps": 10**place}}) for place, one in enumerate(cells)]
    (chart,) = charts(longer)
    assert (chart.x_label, chart.x_log) == ("steps", True)


def test_what_a_world_has_by_default_is_on_the_axis(tmp_path):
    world = "{name: %s, type: synthetic, d_in: 8, n_features: 16, probability: {type: constant, p: 0.1}%s}"
    text = changed(
        ("{name: toy, type: synthetic, d_in: 8, n_features: 16, probability: {type: constant, p: 0.1}}",
         world % ("quiet", "") + "\n  - " + world % ("loud", ", noise: 0.5")),
        ("seeds: [0, 1]", "seeds: [0]"),
    )  # fmt: skip
    (tmp_path / "registry.yaml").write_text(text)
    assert run(tmp_path).code == 0
    page = (tmp_path / call("report", cwd=tmp_path).out.strip()).read_text(encoding="utf-8")
    assert "reconstruction/explained_variance by noise" in page


def test_architectures_are_compared_and_their_width_is_a_map():
    widths = [{"type": "topk", "d_sae": size} for size in (32, 64, 128)]
    cells = [
        cell(name, 0.5 + 0.1 * place, architecture=width)
        for name in ("trained", "frozen_decoder")
        for place, width in enumerate(widths)
    ]
    by_width, by_name = charts(cells)
    assert (by_width.x_label, by_width.panels[0].series[0].x) == ("d_sae", (32.0, 64.0, 128.0))
    assert by_name.x_names == tuple(str(width) for width in widths)
    assert by_name.panels[0].series[0].x == (0.0, 1.0, 2.0)
    (picture,) = drawn(by_name)
    assert [tick.text for tick in picture.x_ticks] == list(by_name.x_names)
    assert all(line.path == "" for line in picture.lines)  # names have no order that a line could follow
    assert charts([cell("trained", 0.5, architecture=width, direction="none") for width in widths]) == []


def test_several_l0_of_one_world_are_panels_of_a_map():
    worlds = [{"noise": noise} for noise in (0.0, 0.5)]
    cells = [cell("trained", 0.5, backbone=world, l0=l0) for world in worlds for l0 in (5.0, 10.0)]
    by_l0, by_noise = charts(cells)
    assert by_l0.x_label == "L0"
    assert [panel.title for panel in by_noise.panels] == [
        "batch_topk · activations · L0 5",
        "batch_topk · activations · L0 10",
    ]
    assert not by_noise.x_log  # from zero on


def test_series_that_do_not_fit_are_refused():
    with pytest.raises(PluginError, match="series 'a': 2 places, 1 values"):
        Series("a", (1.0, 2.0), (1.0,))
    with pytest.raises(PluginError, match="series 'a'"):
        Series("a", (1.0, 2.0), (1.0, 2.0), notes=("one",))
    with pytest.raises(PluginError, match="must be finite"):
        Series("a", (1.0,), (float("nan"),))


@pytest.mark.parametrize(
    ("keys", "levels", "message"),
    [
        ({"x_log": True}, {}, "above zero"),
        ({"x_names": ("one",)}, {}, "numbers of the 1 names"),
        ({}, {"floor": float("inf")}, "levels must be finite"),
    ],
)
def test_charts_that_cannot_be_drawn_are_refused(keys, levels, message):
    panel = ChartPanel("p", (Series("a", (0.0, 1.0), (0.0, 1.0)),), levels)
    with pytest.raises(PluginError, match=message):
        Chart("t", "c", "x", "y", (panel,), **keys)


def drifted(shares):
    """Drift points with two alive latents in bin 3 and one dead in bin 9."""
    counts = {"alive": [0] * 10, "dead": [0] * 10}
    counts["alive"][3], counts["dead"][9] = 2, 1
    part = {name: {"latents": sum(numbers), "counts": numbers} for name, numbers in counts.items()}
    return [{"step": 1, "share": share, "decoder": part} for share in shares]


def test_drift_is_drawn_where_the_decoder_moves_alive_and_dead_apart():
    cells = [record("toy", name, seed).result for name in ("trained", "frozen_decoder") for seed in (0, 1)]
    (chart,) = drift_charts([(one, drifted([0.0, 0.05, 0.1])) for one in cells], -0.2, 10)
    assert [panel.title for panel in chart.panels] == [
        "after 5% of the steps, alive latents",
        "after 5% of the steps, dead latents",
        "after 10% of the steps, alive latents",
        "after 10% of the steps, dead latents",
    ]
    (line,) = chart.panels[0].series  # the frozen decoder has nothing to show
    assert (line.label, line.trained) == ("trained", True)
    assert line.y == (0, 0, 0, 1.0, 0, 0, 0, 0, 0, 0)
    assert line.x[0] == pytest.approx(-0.2 + 0.06)
    assert line.x[-1] == pytest.approx(1 - 0.06)
    assert drift_charts([(cells[0], [])], -0.2, 10) == []


def test_drift_of_each_l0_has_a_chart_of_its_own():
    one, other = (record("toy", "trained", 0).result.model_copy(update={"l0_target": l0}) for l0 in (5.0, 20.0))
    found = drift_charts([(cell, drifted([0.05])) for cell in (one, other)], -0.2, 10)
    assert [chart.title.split(" · ")[-1] for chart in found] == ["L0 5", "L0 20"]


def test_drift_tells_what_the_trained_sae_explains_by_then():
    cells = [record("toy", name, seed).result for name in ("soft_frozen_decoder", "trained") for seed in (0, 1)]
    variances = [0.2, 0.3, 0.6, 0.7]
    told = [
        (one, [point | {"explained_variance": value} for point in drifted([0.05])])
        for one, value in zip(cells, variances, strict=True)
    ]
    (chart,) = drift_charts(told, -0.2, 10)
    assert chart.panels[0].title == "after 5% of the steps, alive latents · trained explains 0.650"


def seen(constraint, seed, best, architecture="topk", start=0.3):
    items = {
        "probability": [0.001, 0.01, 0.1, 0.1],
        "frequency_group": [0, 0, 1, 1],
        "best_cosine": best,
        "best_cosine_at_start": [start] * 4,
    }
    return Observed("toy", "a", architecture, constraint, 20.0, seed, constraint == "trained", items)


def test_limits_that_differ_from_place_to_place_are_left_out():
    """A line across is right only where the limit is the same at all places."""
    cells = []
    for n, floor in ((1, 0.1), (2, 0.3)):
        one = cell("trained", 0.8, backbone={"n": n})
        value = one.result.metrics[EV].model_copy(update={"floor": floor, "ceiling": 0.9})
        cells.append(one.model_copy(update={"result": one.result.model_copy(update={"metrics": {EV: value}})}))
    (panel,) = charts(cells)[0].panels
    assert panel.levels == {"ceiling": 0.9}
    assert [(line.label, line.y) for line in panel.series] == [("trained", (0.8, 0.8))]


def test_recovery_is_drawn_sorted_and_against_frequency():
    found = [
        seen("trained", 0, [0.2, 0.9, 0.9, 1.0]),
        seen("trained", 1, [0.2, 0.7, 0.9, 0.5], start=0.4),
        seen("soft_frozen_decoder", 0, [0.1, 0.1, 0.1, 0.85]),
    ]
    ranked, frequent, nearest = recovery_charts(found, 0.8)
    assert ranked.panels[0].levels == {"threshold": 0.8}
    trained, soft, start = ranked.panels[0].series
    assert (trained.y[0], trained.y[-1]) == (pytest.approx(0.95), pytest.approx(0.2))
    assert list(trained.y) == sorted(trained.y, reverse=True)
    assert (soft.label, start.label) == ("soft_frozen_decoder", "before training")
    assert start.y == pytest.approx((0.35,) * len(start.y))
    trained, soft, start = frequent.panels[0].series
    assert trained.x == (pytest.approx(10**-2.5), pytest.approx(0.1))
    assert trained.y == (pytest.approx(0.25), pytest.approx(0.75))
    assert (soft.y, start.y) == ((0.0, 0.5), (0.0, 0.0))
    assert nearest.panels[0].series[0].y == (pytest.approx((0.2 + 0.9 + 0.2 + 0.7) / 4), pytest.approx(0.825))
    assert recovery_charts([], 0.8) == []


def test_without_different_frequencies_there_is_nothing_to_draw_against():
    alike = seen("trained", 0, [0.1, 0.2, 0.3, 0.4])
    alike = replace(alike, items={**alike.items, "probability": [0.1] * 4})
    (chart,) = recovery_charts([alike], 0.8)
    assert chart.x_label == "share of features"


def test_titles_tell_what_the_trained_sae_explains():
    explained = {"trained": (0.6, 0.7), "frozen_decoder": (0.2, 0.3)}
    found = [
        replace(seen(name, seed, [0.1] * 4), scores={"reconstruction/explained_variance": value})
        for name, values in explained.items()
        for seed, value in enumerate(values)
    ]
    titles = {panel.title for chart in recovery_charts(found, 0.8) for panel in chart.panels}
    assert titles == {"toy · topk · L0 20 · trained explains 0.650"}
    assert recovery_charts(found[2:], 0.8)[0].panels[0].title == "toy · topk · L0 20"


def test_the_report_of_a_run_has_the_charts(tmp_path):
    text = changed(("probability: {type: constant, p: 0.1}", "probability: {type: log_uniform, low: 0.01, high: 0.4}"))
    (tmp_path / "registry.yaml").write_text(text)
    assert run(tmp_path).code == 0
    shown = call("report", cwd=tmp_path)
    page = (tmp_path / shown.out.strip()).read_text(encoding="utf-8")
    for title in (
        "Best cosine of every true feature, sorted",
        "Recovery against firing probability",
        "Best cosine against firing probability",
    ):
        assert page.count(f"<h3>{title}") == 1
    assert "How far directions moved: toy / activations · topk" in page
    assert re.search(r"after 5% of the steps, alive latents · trained explains -?\d", page)


def test_a_metric_that_cannot_draw_takes_no_report_along(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        """
from typing import Literal
from saebench_core import Metric, MetricConfig, MetricSpec, Prepared, Score, Scored, ScoreInfo, hookimpl

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
        return Scored({"one": Score(1.0, 1)}, {"item": [1]})
    def figures(self, found):
        raise KeyError("colour")

@hookimpl
def register_metrics():
    return [MetricSpec(config=MineConfig, build=Mine, summary="one")]
"""
    )
    (tmp_path / "registry.yaml").write_text(changed(("  - {type: feature_recovery}", "  - {type: mine}")))
    assert call("--plugin-file", plugin, "run", "--no-tracking", cwd=tmp_path).code == 0
    shown = call("--plugin-file", plugin, "report", cwd=tmp_path)
    assert shown.code == 0
    assert "warning: mine: its figures are left out: the plugin failed: KeyError: 'colour'" in shown.err
    assert "How far directions moved" in (tmp_path / shown.out.strip()).read_text(encoding="utf-8")
