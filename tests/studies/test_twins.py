"""What a study's page tells of trained SAEs beside twins: differences, the best twin, latents in their contexts."""

from __future__ import annotations

import sys

import pytest
from scipy import stats

from saebench_core import Card, Column, Excerpt, Gallery
from tests.helpers.studies import cell

TRAINED, FROZEN = (0.7, 0.8, 0.9), (0.5, 0.7, 0.6)
CELLS = [
    *(cell("topk", "trained", seed, value) for seed, value in enumerate(TRAINED)),
    *(cell("topk", "frozen", seed, value) for seed, value in enumerate(FROZEN)),
    cell("topk", "soft", 1, 0.79),
    cell("topk", "soft", 2, 0.2, ["collapsed"]),
    cell("topk", "untrained", 7, 0.1),
]
DATA = {"cells": CELLS, "limits": {"toy": {"floor": {}, "ceiling": {}}}}


def test_differences_are_paired_by_seed_with_students_interval(studies):
    asked = {"trained": "trained", "constraint": "frozen,soft,untrained", "scores": "a/b,a/c"}
    lines = studies.differences(DATA, asked).splitlines()
    paired = stats.ttest_rel(TRAINED, FROZEN).confidence_interval(0.95)
    assert lines[0] == "| trained - ... | a / b | a / c |"
    assert lines[2].startswith(f"| frozen | +0.200 [{paired.low:+.3f}, {paired.high:+.3f}] | +2.000 [")
    assert lines[3] == "| soft | +0.010 | +0.100 |"  # one seed is left, so there is no interval
    assert lines[4] == "| untrained |  |  |"  # no seed in common


def test_a_difference_of_two_cells_of_one_seed_is_refused(studies):
    twice = {**DATA, "cells": [*CELLS, cell("relu", "frozen", 0, 0.5)]}
    with pytest.raises(ValueError, match="frozen: several cells of one seed"):
        studies.differences(twice, {"trained": "trained", "constraint": "frozen", "scores": "a/b"})


def test_the_best_twin_is_told_for_each_score_in_percent_of_what_is_trained(studies):
    asked = {"delta": "trained:frozen,soft", "scores": "a/b,a/c"}
    found = sys.modules["study_differences"].best_twins(DATA, asked)
    assert found == "| *best twin* | soft -1.2 % | soft -1.2 % |"
    rows = [{**one, "scores": {**one["scores"], "a/c": 2.0 if one["constraint"] == "frozen" else 1.0}} for one in CELLS]
    told = sys.modules["study_differences"].best_twins({**DATA, "cells": rows}, asked)
    assert told == "| *best twin* | soft -1.2 % | frozen +100.0 % |"
    assert sys.modules["study_differences"].best_twins(DATA, {**asked, "scores": "a/none"}) == "| *best twin* |  |"


def test_a_score_against_l0_by_hand(studies):
    cells = [{**one, "l0": l0, "scores": {"a/b": one["scores"]["a/b"] / l0}} for one in CELLS for l0 in (20.0, 10.0)]
    limits = {"toy": {"floor": {"a/b": 0.0}, "ceiling": {}}}
    chart = studies.against_l0({"cells": cells, "limits": limits}, {"score": "a/b", "constraint": "trained,soft"})
    (panel,) = chart.panels
    trained, soft = panel.series
    assert (chart.title, chart.x_label, chart.x_log, panel.levels) == ("a/b against L0", "L0", True, {"floor": 0.0})
    assert (panel.title, trained.label, trained.trained, soft.trained) == ("topk", "trained", True, False)
    assert trained.x == (10.0, 20.0) and trained.y == (pytest.approx(0.08), pytest.approx(0.04))
    assert trained.spread[0] == pytest.approx(0.01) and trained.hollow == (False, False)
    assert soft.y == (pytest.approx(0.079), pytest.approx(0.0395)) and soft.spread == (0.0, 0.0)
    assert soft.hollow == (
        True,
        True,
    )  # the seed that collapsed is no part of the mean; the flag says that there is one
    assert chart.caption == "mean and standard deviation over 2 to 3 seeds; hollow marks carry a flag"
    alone = studies.against_l0({"cells": cells, "limits": limits}, {"score": "a/b", "constraint": "trained"})
    assert alone.caption == "mean and standard deviation over 3 seeds"
    with pytest.raises(KeyError, match="a/typo: no cell has it"):
        studies.against_l0({"cells": cells, "limits": limits}, {"score": "a/typo"})


def test_scores_beside_each_other_by_hand(studies):
    asked = {"scores": "a/b,a/c", "labels": "B,C", "title": "All", "constraint": "trained,untrained"}
    limits = {"toy": {"floor": {"a/b": 0.25, "a/c": None}, "ceiling": {"a/c": 9.0}}}
    chart = studies.beside_each_other({"cells": CELLS, "limits": limits}, asked)
    trained, untrained, floor, ceiling = chart.panels[0].series
    assert (chart.title, chart.x_names) == ("All", ("B", "C"))
    assert trained.x == (0, 1) and trained.y == (pytest.approx(0.8), pytest.approx(8.0))
    assert untrained.y == (pytest.approx(0.1), pytest.approx(1.0))
    assert (floor.label, floor.x, floor.y) == ("floor", (0,), (0.25,))
    assert (ceiling.label, ceiling.x, ceiling.y) == ("ceiling", (1,), (9.0,))
    with pytest.raises(ValueError, match="1 labels for 2 scores"):
        studies.beside_each_other(DATA, {**asked, "labels": "B"})


def test_marks_are_hollow_for_flags_that_tables_mark(studies):
    cells = [cell("topk", "trained", 0, 0.5, ["repeated_rows"]), cell("topk", "frozen", 0, 0.5, ["missed_l0"])]
    chart = studies.beside_each_other({**DATA, "cells": cells}, {"scores": "a/b", "title": "All"})
    assert [series.hollow for series in chart.panels[0].series] == [(False,), (True,)]
    assert chart.caption == "one seed; hollow marks carry a flag"
    chart = studies.beside_each_other({**DATA, "cells": cells[:1]}, {"scores": "a/b", "title": "All"})
    assert chart.caption == "one seed"


def test_latents_are_shown_with_marks_and_nothing_of_a_text_is_taken_as_html(studies):
    excerpt = Excerpt(("<b>", " cat\n", "", "s"), (0.0, 1.0, 0.5, 0.2))  # without text: it begins the next one
    columns = tuple(
        Column(name, (Card(f"latent {name}", "a & b", "accuracy 0.90", (excerpt,) * 9),))
        for name in ("trained", "soft")
    )
    module = sys.modules["study_latents"]
    stored = module.kept(Gallery("G", "c", columns))
    assert len(stored["columns"][0]["cards"][0]["excerpts"]) == module.EXCERPTS
    made = module.latents(stored, {"constraint": "soft"})
    style = 'style="background: rgba(255, 140, 0, {}); color: inherit"'
    assert made.count("<br>") == module.EXCERPTS and "latent trained" not in made
    assert made.startswith('**soft**\n\n<div class="latent"><em>latent soft: accuracy 0.90; &quot;a &amp; b&quot;</em>')
    assert f"&lt;b&gt;<mark {style.format('0.70')}> cat⏎</mark><mark {style.format('0.40')}>s</mark>" in made
    with pytest.raises(KeyError, match="there are"):
        module.latents(stored, {"constraint": "none"})


def _at(constraint, l0, explained, probed, **changes):
    scores = {"a/b": explained, "a/c": probed, "reconstruction/l0": l0 + 0.5}
    return {**cell("topk", constraint, 0, 0.0), "id": f"{constraint} {l0}", "l0": l0, "scores": scores, **changes}


MATCHED = {"by": "a/b", "scores": "a/c", "trained": "trained", "constraint": "soft,frozen", "l0": "40.0"}
CURVE = [_at("trained", 40.0, 0.8, 0.9), _at("trained", 10.0, 0.5, 0.6), _at("trained", 20.0, 0.7, 0.8)]
BESIDE = [_at("soft", 40.0, 0.55, 0.7, flags=["missed_l0"]), _at("frozen", 40.0, 0.4, 0.6), _at("soft", 20.0, 0.2, 0.1)]


def test_a_twin_stands_beside_a_trained_sae_that_explains_as_much(studies):
    found = {"one": {"cells": [*CURVE[:2], *BESIDE]}, "other": {"cells": [CURVE[0], CURVE[2]]}}
    lines = studies.matched(found, MATCHED).splitlines()
    assert lines[0] == "| constraint | a / b | L0 | trained: L0 | a / c | trained |"
    assert lines[2] == "| soft | 0.550 ‡ | 40.5 | 13.0 | 0.700 | 0.650 |"  # a quarter of the way from L0 10 to 20
    assert lines[3] == "| frozen | 0.400 | 40.5 |  | 0.600 |  |"  # no trained one explains so little
    assert len(lines) == 4


def test_what_is_matched_is_of_one_place(studies):
    with pytest.raises(ValueError, match="seed: cells of 0, 1; choose one"):
        studies.matched({"one": {"cells": [*CURVE, *BESIDE, _at("frozen", 40.0, 0.4, 0.6, seed=1, id="f1")]}}, MATCHED)
    with pytest.raises(ValueError, match="soft: 2 cells; choose among them by l0"):
        studies.matched({"one": {"cells": [*CURVE, *BESIDE]}}, {**MATCHED, "l0": "40.0,20.0"})
