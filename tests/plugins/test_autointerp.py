"""Descriptions of latents whose meaning is planted: tokens, neighbours of tokens, and nothing."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.metrics._interp_config import AutointerpConfig
from saebench_plugins.metrics._interp_scores import COUNTS, Drawn, means
from saebench_plugins.metrics.autointerp import Autointerp

from saebench_core import (
    Backbone,
    BackboneDescription,
    NotApplicable,
    Observed,
    Score,
    SparseAutoencoder,
    Subject,
    TopK,
)
from tests.helpers.contexts import FakeContext
from tests.helpers.interp import (
    D_IN,
    VOCABULARY,
    WIDTH,
    Knows,
    StrongAndWeak,
    TokenWorld,
    first_scores,
    llm,
    metric_of,
    one_to_one,
    run,
    server,
)


def test_tokens_tell_what_tokens_mean_and_nothing_else(tmp_path):
    result, prepared = run(metric_of(latents=100), one_to_one(), tmp_path)
    found = dict(zip(result.items["latent"], result.items["accuracy"], strict=True))
    # a token at a sequence's start is no row, and tells where nothing fires
    assert min(found[token] for token in range(VOCABULARY)) >= 0.85
    assert sum(found[token] for token in range(VOCABULARY)) / VOCABULARY > 0.96
    assert found[25] < 0.8  # fires at random
    assert found[24] < 0.8  # its neighbour before tells, not its own token
    assert result.items["description"][5] == "' t5'"
    area = dict(zip(result.items["latent"], result.items["auroc"], strict=True))
    assert area[7] > 0.85
    assert abs(result.scores["tokens_accuracy_shuffled"].value - 0.5) < 0.1
    assert prepared.floors == {
        "tokens_accuracy": 0.5,
        "tokens_auroc": 0.5,
        "tokens_yield": 0.0,
        "tokens_above_0.7": 0.0,
    }
    good = result.scores["tokens_above_0.7"].value
    assert result.scores["alive"].value == pytest.approx(26 / 28)
    assert result.scores["tokens_yield"].value == pytest.approx(good * 26 / 28)
    assert set(result.scores) == set(metric_of().scores())
    pieces, values = json.loads(result.items["contexts"][0])[0]
    assert next(piece for piece, value in zip(pieces, values, strict=True) if value > 0) == " t0"


def test_equal_runs_are_equal_and_read_the_model_once(tmp_path):
    model = TokenWorld()
    context = FakeContext(tmp_path / "store", model, "s")
    metric = metric_of(latents=5)
    first, prepared = run(metric, one_to_one(), tmp_path, model, context)
    reads = model.reads
    again = metric.score(Subject(one_to_one(), lambda: None), prepared, context)
    assert first == again
    assert model.reads == reads


def test_an_sae_that_never_fires(tmp_path):
    dead = SparseAutoencoder.start(-torch.eye(D_IN), torch.eye(D_IN), torch.zeros(D_IN), TopK(3), "none")
    result, _ = run(metric_of(), dead, tmp_path)
    assert result.scores["alive"].value == 0
    assert isinstance(result.scores["tokens_accuracy"], NotApplicable)
    assert set(result.scores) == set(metric_of().scores())


def row(balanced, answered=1.0):
    counts = dict.fromkeys(COUNTS, 1.0)
    return {"accuracy": 0.5, "balanced_accuracy": balanced, "answered": answered, "shuffled": None, **counts}


def test_means_by_hand():
    """Above 0.7 is above, not at it; the yield is of all latents, those that cannot be tested too."""
    config = AutointerpConfig(judge=llm("http://localhost/v1"))
    found = means(config, "", [row(0.7), row(0.71), row(0.9), row(0.2)], Drawn(0.3, 0.4, 10))
    assert found["above_0.7"].value == 0.5
    assert found["yield"].value == pytest.approx(0.15)
    assert found["alive"].value == 0.4 and found["alive"].n == 10
    assert found["requests"].value == 4
    assert isinstance(means(config, "", [row(0.9, 0.5)], Drawn(1, 1, 1))["accuracy"], Score)
    assert isinstance(means(config, "", [row(0.9, 0.49)], Drawn(1, 1, 1))["accuracy"], NotApplicable)


@pytest.mark.parametrize(
    ("protocol", "shuffled", "asked"),
    [
        ({"type": "paper"}, True, 200 * (1 + 2 * 10)),
        ({"type": "paper", "tested": 95}, False, 200 * (1 + 10)),
        ({"type": "saebench"}, True, 1000 * (1 + 2)),
        ({"type": "delphi", "scorer": "fuzzing"}, True, 200 * (1 + 2 * 20)),
    ],
)
def test_questions_are_counted_before_they_are_asked(protocol, shuffled, asked):
    judge = llm("http://localhost/v1")
    metric = Autointerp(AutointerpConfig(judge=judge, protocol=protocol, shuffled=shuffled))
    assert metric.work(BackboneDescription("language", {"s": 8})).asked == asked
    assert Autointerp(AutointerpConfig()).work(BackboneDescription("language", {"s": 8})).asked == 0


def test_windows_longer_than_sequences_give_no_score(tmp_path):
    result, _ = run(metric_of(width=41), one_to_one(), tmp_path)
    assert set(result.scores) == set(metric_of().scores())
    assert "windows have 41 tokens, but the backbone's sequences 40" in result.scores["tokens_accuracy"].reason


def test_it_needs_tokens_that_can_be_read():
    class Bare(Backbone):
        describe = prepare = rows_available = stream = None

    assert isinstance(metric_of().applicable(Bare()), NotApplicable)
    assert metric_of().applicable(TokenWorld()) is None


@pytest.mark.parametrize(
    ("options", "asked", "floor"),
    [
        ({"type": "saebench", "latents": 4}, 4 * 3, 10 / 14),
        ({"type": "delphi", "latents": 4}, 4 * (1 + 4 + 4), 0.5),
        ({"type": "delphi", "scorer": "fuzzing", "latents": 4}, 4 * (1 + 4 + 4), 0.5),
    ],
)
def test_other_protocols(tmp_path, options, asked, floor):
    """One-hot tokens are told rightly; of shuffled descriptions the floor is right, or they name what is not there."""
    knows = Knows()
    only = SparseAutoencoder.start(
        torch.eye(D_IN)[:, :VOCABULARY], torch.eye(D_IN)[:VOCABULARY], torch.zeros(D_IN), TopK(3), "none"
    )
    with server(knows) as url:
        metric = metric_of(llm(url), **options)
        result, prepared = run(metric, only, tmp_path, StrongAndWeak())
    assert len(knows.asked) == asked
    assert first_scores(result)["accuracy"] == 1.0
    assert first_scores(result)["balanced_accuracy"] == first_scores(result)["f1"] == 1.0
    assert prepared.floors["accuracy"] == pytest.approx(floor)
    assert result.scores["accuracy_shuffled"].value < 0.8
    assert set(result.scores) == set(metric.scores())


def test_proxies_follow_what_they_can():
    for protocol in ({"type": "saebench"}, {"type": "delphi", "scorer": "fuzzing"}):
        with pytest.raises(ValidationError, match="needs a judge of type llm, but it is tokens"):
            AutointerpConfig(protocol=protocol)
    scores = Autointerp(AutointerpConfig(protocol={"type": "delphi"})).scores()
    assert "tokens_balanced_accuracy" in scores


def test_the_report_shows_latents_of_trained_saes_beside_twins(tmp_path):
    result, _ = run(metric_of(latents=8), one_to_one(), tmp_path)
    cells = [
        Observed("lm", "s", "topk", constraint, 3.0, seed, constraint == "trained", result.items)
        for constraint in ("untrained", "trained")
        for seed in (1, 0)
    ]
    (gallery,) = metric_of().galleries(cells)
    assert gallery.title == "lm / s · topk · L0 3"
    assert [(column.label, column.trained) for column in gallery.columns] == [("trained", True), ("untrained", False)]
    cards = gallery.columns[0].cards
    assert [card.title.split(", ")[1] for card in cards] == ["told best"] * 3 + ["at random"] * 3
    assert cards[0].note == "accuracy 1.00"
    excerpt = cards[0].excerpts[0]
    assert max(excerpt.strengths) == 1.0
    assert len(excerpt.pieces) == len(excerpt.strengths) == WIDTH


def test_the_chart_tells_how_many_latents_reach_an_accuracy():
    cells = [
        Observed("lm", "s", "topk", constraint, 3.0, seed, constraint == "trained", {"accuracy": accuracies})
        for seed in (0, 1)
        for constraint, accuracies in (("trained", [1.0, 0.9, 0.7, 0.5]), ("untrained", [0.5, 0.5, 0.4 + 0.1 * seed]))
    ]
    (chart,) = metric_of().figures(cells)
    (panel,) = chart.panels
    assert chart.title == "Latents by accuracy, judge tokens" and panel.title.startswith("lm · topk · L0 3")
    trained, untrained = (dict(zip(line.x, line.y, strict=True)) for line in panel.series)
    assert [line.trained for line in panel.series] == [True, False]
    assert [trained[place] for place in (0.4, 0.5, 0.52, 0.7, 0.72, 1.0)] == [1, 1, 0.75, 0.75, 0.5, 0.25]
    assert [untrained[place] for place in (0.4, 0.5, 0.52)] == [1, pytest.approx((2 / 3 + 1) / 2), 0]
    assert metric_of().figures([]) == []


def test_latents_to_rate_are_drawn_whatever_their_scores_and_what_a_report_shows(tmp_path):
    result, _ = run(metric_of(latents=26), one_to_one(), tmp_path)
    cell = Observed("lm", "s", "topk", "trained", 3.0, 0, True, result.items)
    (gallery,) = metric_of().to_rate([cell], 12)
    cards = gallery.columns[0].cards
    drawn = [int(card.title.removeprefix("latent ")) for card in cards]
    assert len({*drawn}) == 12 and drawn != sorted(drawn)
    scores = dict(zip(result.items["latent"], result.items["accuracy"], strict=True))
    assert [card.score for card in cards] == [scores[latent] for latent in drawn]
    (shown,) = metric_of().galleries([cell])
    reported = [card.title.split(",")[0] for card in shown.columns[0].cards[3:]]
    assert reported != [card.title for card in cards[:3]]


def test_no_tensor_is_made_on_an_implicit_device(tmp_path):
    model, sae = TokenWorld(), one_to_one()
    wanted, _ = run(metric_of(latents=5), sae, tmp_path / "one", model)
    with torch.device("meta"):
        found, _ = run(metric_of(latents=5), sae, tmp_path / "two", model)
    assert found == wanted
