"""Reports: numbers by hand, honest gaps, and one HTML file that asks the network for nothing."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from saebench_core.errors import PluginError
from saebench_core.interfaces.excerpt import Card, Column, Excerpt, Gallery
from saebench_core.report import certificate_rows, comparisons, console_text, render_html, show, tidy, write_html
from saebench_core.report.drawing import drawn
from saebench_core.report.figures import dot_figures
from saebench_core.report.lines import score_charts
from saebench_core.report.tables import Block
from saebench_core.report.words import number
from tests.helpers.records import REGISTRY, digest, metric, record, records, sweep

EV = "reconstruction/explained_variance"
MSE = "reconstruction/mse"
RECOVERY = "feature_recovery/mean"
TOY = Block("toy", "activations", "batch_topk", 20.0)


def row(cells, score, block=TOY):
    (comparison,) = [found for found in comparisons(cells) if found.block == block]
    return next(row for row in comparison.rows if row.score == score)


def entry(found, constraint):
    return next(entry for entry in found.entries if entry.constraint == constraint)


def scored(constraint, seed, value, **changes):
    flags = changes.pop("flags", ())
    init = changes.pop("init", "iso")
    state = {key: changes.pop(key) for key in ("status", "error") if key in changes}
    metrics = {EV: metric(value, "both", constraint, **changes)}
    return record("toy", constraint, seed, flags=flags, init=init, metrics=metrics, **state)


def test_cells_are_counted_by_their_state():
    cells = [scored("trained", 0, 0.8), scored("trained", 1, 0.8, status="pending"), scored("frozen_decoder", 0, 0.5)]
    started = sweep(cells)
    left_out = scored("frozen_encoder", 0, 0.1, status="excluded")  # a sweep has the cells that are to run alone

    def tiles(found):
        page = render_html(started, found)
        return {what: number for number, what in re.findall(r"<b>([^<]*)</b><span>([^<]*)</span>", page)}

    assert tiles([*cells, left_out]).items() >= {"cells done": "2", "not run yet": "1", "excluded": "1"}.items()
    assert "not run yet" not in tiles([cells[0], scored("trained", 1, 0.8), cells[2], left_out])


def test_mean_and_spread_by_hand():
    trained = entry(row(records(), EV), "trained")
    assert trained.mean == pytest.approx(0.82)
    assert trained.sd == pytest.approx(0.04 / 2**0.5)  # of a sample of two
    assert trained.n == 2


def test_share_earned_by_learning_by_hand():
    higher = row(records(), EV)
    assert higher.best_twin == "soft_frozen_decoder"
    assert higher.learned == pytest.approx((0.82 - 0.615) / (0.82 - 0.0))
    lower = row(records(), MSE)  # floor 10, trained 1.8, best twin 3.8
    assert lower.best_twin == "soft_frozen_decoder"
    assert lower.learned == pytest.approx((3.8 - 1.8) / (10 - 1.8))


def test_a_twin_that_is_no_null_is_not_the_best_twin():
    found = row(records(), RECOVERY)
    encoder = entry(found, "frozen_encoder")
    assert encoder.mean == pytest.approx(0.29) and not encoder.valid_null  # best number, but its decoder is learned
    assert found.best_twin == "soft_frozen_decoder"
    assert found.learned == pytest.approx((0.32 - 0.21) / (0.32 - 0.05))


def test_gain_is_paired_over_common_seeds():
    cells = [
        scored("trained", 0, 0.8, floor=0.0),
        scored("trained", 1, 0.2, floor=0.0),
        scored("frozen_decoder", 0, 0.4, floor=0.0),
    ]
    found = row(cells, EV)
    assert found.learned == pytest.approx(0.5) and entry(found, "trained").mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ([scored("trained", 0, 0.8), scored("frozen_decoder", 0, 0.4)], "no floor"),
        ([scored("trained", 0, 0.0, floor=0.0), scored("frozen_decoder", 0, 0.4, floor=0.0)], "not above the floor"),
        ([scored("trained", 0, -0.1, floor=0.0), scored("frozen_decoder", 0, 0.4, floor=0.0)], "not above the floor"),
        ([scored("trained", 0, 0.8, floor=0.0), scored("frozen_decoder", 0, 0.4, floor=0.1)], "no floor"),
        ([scored("trained", 0, 0.8, floor=0.0), scored("frozen_decoder", 1, 0.4, floor=0.0)], "no seed in common"),
        ([scored("trained", 0, 0.8, floor=0.0)], "no twin"),
        ([scored("frozen_decoder", 0, 0.8, floor=0.0)], "no trained"),
        ([scored("trained", 0, None)], "no values"),
        (
            [scored("trained", 0, 0.8, direction="none"), scored("frozen_decoder", 0, 0.4, direction="none")],
            "no direction",
        ),
    ],
)
def test_gain_is_undefined_with_a_reason(cells, why):
    found = row(cells, EV)
    assert found.learned is None and why in found.why_not


def test_collapsed_failed_and_outdated_cells_stay_out_of_means():
    smol = Block("smol", "layers.15", "batch_topk", 20.0)
    found = row(records(), EV, smol)
    collapsed, failed = entry(found, "frozen_decoder"), entry(found, "frozen_encoder")
    assert (collapsed.values, collapsed.collapsed, collapsed.sd) == ({1: pytest.approx(0.47)}, (0,), None)
    assert (failed.values, failed.failed) == ({0: pytest.approx(0.35)}, (1,))
    old = row([scored("trained", 0, 0.1), scored("trained", 1, 0.8, metric_version=2)], EV)
    assert entry(old, "trained").values == {1: 0.8} and entry(old, "trained").outdated == (0,)
    assert old.versions == (1, 2)


def test_scores_that_do_not_apply_say_why():
    found = row(records(), RECOVERY, Block("smol", "layers.15", "batch_topk", 20.0))
    assert entry(found, "trained").reason == "smol has no known features"
    assert found.floor is None and found.learned is None


def test_scores_can_be_chosen_and_verdicts_given():
    (toy, smol) = comparisons(records(), [RECOVERY, EV], {(TOY, EV): "above"})
    assert [found.score for found in toy.rows] == [RECOVERY, EV]
    assert [found.verdict for found in toy.rows] == [None, "above"]
    assert toy.constraints[0] == "trained" and toy.seeds == (0, 1) and smol.block.backbone == "smol"


def test_pretrained_has_references_instead_of_twins():
    from saebench_core.results import EntryRef

    mine = EntryRef(name="mine", type="pretrained", config={})
    cells = [
        record("toy", name, seed, architecture=mine).model_copy(update={"paired": False})
        for name, seed in (("trained", 0), ("frozen_decoder", 0), ("frozen_decoder", 1))
    ]
    (found,) = comparisons(cells)
    assert not found.paired
    assert [row.same_draw for row in certificate_rows(cells)] == [None, None, None]
    floor = found.rows[0].floor
    (explained,) = comparisons(cells, [EV])[0].rows
    assert (explained.best_twin, explained.floor) == ("frozen_decoder", floor)
    assert explained.learned == pytest.approx((0.80 - (0.50 + 0.52) / 2) / (0.80 - floor)), (
        "all seeds of the references"
    )
    assert "they are not twins" in render_html(sweep(cells), cells)


def test_tidy_has_a_row_for_each_value():
    rows = tidy(records(), [EV])
    assert len(rows) == 15  # the failed cell has no scores
    assert rows[0]["constraint"] == "trained" and rows[0]["value"] == 0.80 and rows[0]["seed"] == 0


def test_certificates_are_checked():
    rows = certificate_rows(records())
    assert len(rows) == 15 and all(row.sound for row in rows)
    assert {row.same_draw for row in rows} == {row.same_order for row in rows} == {True}
    encoder = next(row for row in rows if row.constraint == "frozen_encoder")
    assert encoder.frozen == {"W_enc": True, "b_enc": True}


def test_a_twin_that_is_none_is_found_out():
    cells = records()
    wrong = dict(cells[2].result.certificate)
    wrong["base_draw_sha256"] = digest("another draw")
    wrong["frozen"] = {"W_dec": {"before": digest("a"), "after": digest("b")}}
    cells[2] = record("toy", "frozen_decoder", 0, certificate=wrong)
    rows = {(row.backbone, row.constraint, row.seed): row for row in certificate_rows(cells)}
    assert rows["toy", "frozen_decoder", 0].frozen == {"W_dec": False}
    assert [rows["toy", name, 0].same_draw for name in ("trained", "frozen_decoder")] == [False, False]
    assert rows["toy", "trained", 1].same_draw and rows["smol", "trained", 0].same_draw
    assert "11 of 15" in render_html(sweep(cells), cells)


def test_facts_that_constraints_add_are_checked():
    def checks(**facts):
        cell = record("toy", "trained", 0)
        changed = {**cell.result.certificate, "frozen": {}, **facts}
        (row,) = certificate_rows([record("toy", "trained", 0, certificate=changed)])
        return row.frozen, row.sound

    same, other = digest("a"), digest("b")
    latents = {"count": 3, "W_dec": {"before": same, "after": same}}
    assert checks(frozen_latents=latents) == ({"W_dec of frozen latents": True}, True)
    broken = {**latents, "W_enc": {"before": same, "after": other}}
    assert checks(frozen_latents=broken)[1] is False
    for hash_of_twin, sound in ((same, True), (other, False)):
        facts = {"unpermuted_w_dec_sha256": same, "twin": {"W_dec": hash_of_twin}}
        assert checks(**facts) == ({"W_dec up to its order": sound}, sound)


def test_start_is_compared_within_an_init_only():
    cells = [record("toy", "trained", 0), record("toy", "frozen_decoder", 0)]
    facts = {**cells[1].result.certificate, "w_dec_start_sha256": digest("cov")}
    cells[1] = record("toy", "frozen_decoder", 0, init="cov", certificate=facts)
    assert [row.same_start for row in certificate_rows(cells)] == [None, None]


class Page(HTMLParser):
    """Collects what could make a browser ask for something, and what it would run."""

    def __init__(self):
        super().__init__()
        self.asked, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.asked += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action") and value]


def page(*arguments, **options):
    text = render_html(*arguments, **options)
    parser = Page()
    parser.feed(text)
    return text, parser


def test_html_asks_the_network_for_nothing():
    text, parser = page(sweep(records()), records(), notice="a demonstration, not evidence")
    assert all(value.startswith("#") for value in parser.asked)
    assert not re.search(r"url\(|@import|https?://|<link|<iframe|<img", text)
    assert "default-src 'none'" in text and parser.tags.count("script") == 1


def test_galleries_show_latents_side_by_side_and_escape_texts():
    excerpt = Excerpt(("a ", "<script>", " c"), (0.0, 1.0, 0.25))
    card = Card("latent 3, told best", 'a "phrase" & <b>', "accuracy 0.93", (excerpt,))
    columns = (Column("trained", (card,), True), Column("untrained", (Card("latent 1", "", "", ()),)))
    cells = records()
    text = render_html(sweep(cells), cells, galleries=[Gallery("lm / layers.1", "how to read", columns)])
    assert '<a href="#latents">' in text
    assert '<mark style="--s:100%">&lt;script&gt;</mark>' in text
    assert '<mark style="--s:25%"> c</mark>' in text
    assert "a &#34;phrase&#34; &amp; &lt;b&gt;" in text
    assert text.index("<h4>trained</h4>") < text.index("<h4>untrained</h4>")
    assert "#latents" not in render_html(sweep(cells), cells)


def test_excerpts_that_cannot_be_right_are_refused():
    with pytest.raises(PluginError, match="2 pieces and 1 strengths"):
        Excerpt(("a", "b"), (1.0,))
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(PluginError, match="between 0 and 1"):
            Excerpt(("a",), (strength,))


def test_html_escapes_what_users_and_plugins_write():
    evil = "<script>alert(1)</script>"
    cells = [
        record(
            "toy",
            "trained",
            0,
            flags=(evil,),
            site=evil,
            metrics={f"{evil}/x": metric(0.5, "both", "trained", unit=evil)},
        ),
        record("toy", "frozen_decoder", 0, status="failed", error=f"\"'>{evil}", metrics={}),
    ]
    kept = sweep(cells, name=evil).model_copy(update={"registry": evil, "environment": {evil: evil}})
    text, parser = page(kept, cells, notice=evil, descriptions={f"{evil}/x": evil}, commands=[evil])
    assert evil not in text and parser.tags.count("script") == 1
    assert text.count("&lt;script&gt;") > 8


def test_html_has_all_sections_and_numbers():
    text, _ = page(
        sweep(records()),
        records(),
        notice="a demonstration, not evidence",
        descriptions={EV: "one minus the unexplained share"},
        headline=[EV],
        verdicts={(TOY, EV): "inconclusive"},
    )
    for wanted in (
        "0.820 ± 0.028", "25 %", "best twin: soft_frozen_decoder", "not a null for this score", "collapsed: seed 0",
        "failed: seed 1", "missed_l0", "more than 2 %", "smol has no known features", "loss is nan at step 120",
        "15 of 15", "a demonstration, not evidence", "one minus the unexplained share", "saebench run registry.yaml",
        "pip install saebench-core==0.1.0", "type: synthetic, d_in: 100", ">inconclusive<", "2.14.1",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert text.count('<svg class="dots" viewBox="0 0 600') == 2  # explained variance, one panel a backbone
    assert REGISTRY.splitlines()[0] in text


def test_html_is_a_function_of_its_inputs(tmp_path):
    kept, cells = sweep(records()), records()
    assert render_html(kept, cells) == render_html(kept, cells)
    path = write_html(tmp_path / "deep" / "report.html", kept, cells, headline=[EV])
    assert path.read_text(encoding="utf-8") == render_html(kept, cells, headline=[EV])


def test_html_of_nothing():
    text, _ = page(sweep([]), [])
    assert "No cell has finished yet." in text and "No score to draw." in text


def test_figures_place_values_on_one_axis():
    (figure,) = dot_figures(comparisons(records()), [EV])
    toy, smol = figure.panels
    assert [tick.text for tick in toy.ticks] == [tick.text for tick in smol.ticks] == ["0", "0.5", "1"]
    assert toy.floor is not None and toy.floor.x == toy.ticks[0].x
    trained = toy.lanes[0]
    left, right = toy.ticks[0].x, toy.ticks[-1].x
    assert trained.mean == pytest.approx(left + 0.82 * (right - left), abs=0.05)
    assert trained.dots[0].title == "trained, seed 0: 0.8000"


def test_several_l0_are_drawn_as_lines():
    cells = [
        scored(name, seed, value - 0.1 * seed - l0 / 1000, floor=0.0).model_copy()
        for l0 in (20, 40)
        for name, value in (("trained", 0.9), ("frozen_decoder", 0.5), ("frozen_encoder", 0.5))
        for seed in (0, 1)
    ]
    targets = [20.0] * 6 + [40.0] * 6
    cells = [
        cell.model_copy(update={"result": cell.result.model_copy(update={"l0_target": l0})})
        for cell, l0 in zip(cells, targets, strict=True)
    ]
    (chart,) = score_charts(comparisons(cells), cells, EV)
    assert chart.x_log and chart.x_label == "L0"
    (panel,) = drawn(chart)
    assert [tick.text for tick in panel.x_ticks] == ["20", "40"]
    assert panel.lines[0].label == "trained" and panel.lines[0].colour == 0
    assert panel.lines[2].label_y - panel.lines[1].label_y >= 14  # equal values, labels apart
    assert panel.lines[0].marks[0].title == "trained, L0 20: 0.830 ± 0.071 (n=2)"
    assert score_charts(comparisons(records()), records(), EV) == []
    assert "every seed" in render_html(sweep(cells), cells)


@pytest.mark.parametrize("value", [0.0, 5.0, -2.5])
def test_figure_of_a_single_value(value):
    (figure,) = dot_figures(comparisons([scored("trained", 0, value)]), [EV])
    assert figure.panels[0].ticks


def test_console_is_plain_where_there_is_no_terminal():
    stream = io.StringIO()
    show(Console(file=stream, width=40), sweep(records()), records(), notice="a demonstration, not evidence")
    text = stream.getvalue()
    assert text == console_text(sweep(records()), records(), notice="a demonstration, not evidence")
    assert text.isascii() and "0.820 +- 0.028" in text and "25 %" in text
    assert "! failed: smol | batch_topk | frozen_encoder (seed 1): FloatingPointError" in text
    assert re.search(r"^best twin +soft_frozen_decoder", text, re.MULTILINE)


def test_one_error_of_many_cells_is_one_line():
    cells = [
        record("toy", name, seed, status="failed", error="mine: ValueError: boom")
        for name in ("trained", "frozen_decoder")
        for seed in (0, 1)
    ]
    text = console_text(sweep(cells), cells)
    assert text.count("boom") == 1
    assert "| trained (seed 0, 1), frozen_decoder (seed 0, 1): mine: ValueError: boom" in text


def test_a_metric_that_failed_takes_no_other_score_along():
    cells = [
        scored("trained", 0, 0.8, floor=0.0, status="failed", error="mine: ValueError: boom"),
        scored("frozen_decoder", 0, 0.4, floor=0.0, status="failed", error="mine: ValueError: boom"),
    ]
    found = row(cells, EV)
    assert found.learned == pytest.approx(0.5) and entry(found, "trained").failed == ()
    assert "0.800" in console_text(sweep(cells), cells)


@pytest.mark.parametrize("options", [{}, {"no_color": True}])
def test_console_table_on_a_terminal(options):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=130, **options)
    show(console, sweep(records()), records(), scores=[EV, RECOVERY])
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "0.820 ± 0.028" in text and "0.290 ± 0.014 *" in text and MSE not in text


def test_a_narrow_terminal_loses_nothing():
    stream = io.StringIO()
    show(Console(file=stream, force_terminal=True, width=72, no_color=True), sweep(records()), records())
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "soft_frozen_decoder" in text and "earned by learning" in text


def test_console_does_not_read_names_as_markup():
    stream = io.StringIO()
    cells = [record("toy", "trained", 0, site="[red]layers[/red]")]
    show(Console(file=stream, force_terminal=True, width=130), sweep(cells), cells)
    assert "[red]layers[/red]" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (0.0, "0.000"),
        (0.8204, "0.820"),
        (12.34567, "12.346"),
        (123.456, "123.5"),
        (2.5e-5, "2.50e-05"),
        (12345.6, "12346"),
        (3e7, "3.00e+07"),
    ],
)
def test_numbers_as_people_read_them(value, text):
    assert number(value) == text
