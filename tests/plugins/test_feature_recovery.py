"""Feature recovery on decoders whose score is known."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.metrics import _cosines, feature_recovery
from saebench_plugins.metrics._cosines import best_cosines
from saebench_plugins.metrics.feature_recovery import FeatureRecovery, FeatureRecoveryConfig

from saebench_core.errors import PluginError
from saebench_core.interfaces.metric import Subject
from saebench_core.rules import ReLU
from saebench_core.sae import SparseAutoencoder
from tests.helpers.contexts import FakeContext
from tests.helpers.training import MemoryBackbone, build, generator, normal

D, N = 20, 60


@pytest.fixture
def context():
    probability = {"type": "log_uniform", "low": 0.001, "high": 0.1}
    return FakeContext(None, build("backbone", "synthetic", d_in=D, n_features=N, probability=probability))


def score(context, decoder, start=None, **config):
    metric = FeatureRecovery(FeatureRecoveryConfig(**config))
    sae = SparseAutoencoder.start(decoder.T, decoder, torch.zeros(D), ReLU(), "none")
    prepared = metric.prepare(context)
    scored = metric.score(Subject(sae, lambda: decoder if start is None else start), prepared, context)
    assert set(scored.scores) == set(metric.scores())
    return {name: getattr(found, "value", found) for name, found in scored.scores.items()}, scored, prepared


def features(context):
    return context.backbone.features()


def random_rows(seed=0, count=N):
    return torch.nn.functional.normalize(normal(count, D, seed=seed), dim=1)


def test_the_true_dictionary_recovers_everything(context):
    found, scored, prepared = score(context, features(context))
    assert found["fraction_0.8"] == 1.0
    assert found["mean"] == pytest.approx(1.0, abs=1e-6)
    assert set(prepared.ceilings.values()) == {1.0}
    assert {"fraction_0.7", "fraction_0.8", "fraction_0.9", "mean", "fraction_0.8_group_10"} <= set(prepared.ceilings)
    assert scored.scores["mean"].n == N


def test_order_scale_and_further_latents_do_not_matter(context):
    shuffled = features(context)[torch.randperm(N, generator=generator(1))]
    decoder = torch.cat([shuffled * (0.01 + 5 * torch.rand(N, 1, generator=generator(2))), random_rows(count=30)])
    found, _, _ = score(context, decoder)
    assert found["fraction_0.8"] == 1.0
    assert found["mean"] == pytest.approx(1.0, abs=1e-6)


def test_cosines_are_signed(context):
    found, _, _ = score(context, -features(context)[:1])
    others = features(context) @ features(context)[0]
    assert found["fraction_0.8"] == 0.0
    assert found["mean"] == pytest.approx(float(-others.mean()), abs=1e-6)


def test_random_directions_score_the_floor(context):
    draws = [score(context, random_rows(seed)) for seed in range(20)]
    means = torch.tensor([found["mean"] for found, _, _ in draws])
    floor = draws[0][2].floors["mean"]
    assert abs(floor - float(means.mean())) < 4 * float(means.std())
    assert 0.3 < floor < 0.7
    assert draws[0][2].floors["fraction_0.8"] <= 0.1
    assert all(prepared.floors == draws[0][2].floors for _, _, prepared in draws)


def test_a_feature_counts_only_above_the_threshold(context):
    truth = features(context)
    aside = torch.nn.functional.normalize(truth - (truth @ truth[0])[:, None] * truth[0], dim=1)[1]
    for cosine, recovered in ((0.81, 1), (0.79, 0)):
        decoder = (cosine * truth[0] + (1 - cosine**2) ** 0.5 * aside)[None]
        _, scored, _ = score(context, decoder)
        assert scored.items["best_cosine"][0] == pytest.approx(cosine, abs=1e-5)
        assert (scored.items["best_cosine"][0] > 0.8) == bool(recovered)
        expected = sum(value > 0.8 for value in scored.items["best_cosine"]) / N
        assert scored.scores["fraction_0.8"].value == pytest.approx(expected)
        assert expected >= recovered / N


def test_exactly_on_the_threshold_is_not_recovered(context, monkeypatch):
    monkeypatch.setattr(feature_recovery, "best_cosines", lambda wanted, rows: torch.full((N,), 0.5))
    found, _, _ = score(context, random_rows(), threshold=0.5)
    assert found["fraction_0.5"] == 0.0


def test_dead_rows_recover_nothing(context):
    found, scored, _ = score(context, torch.zeros(5, D))
    assert (found["fraction_0.8"], found["mean"]) == (0.0, 0.0)
    half = features(context).clone()
    half[N // 2 :] = 0.0
    _, scored, _ = score(context, half)
    assert min(scored.items["best_cosine"][: N // 2]) == pytest.approx(1.0, abs=1e-6)
    assert max(scored.items["best_cosine"][N // 2 :]) < 0.999


def test_scores_of_the_start_are_those_of_the_decoder_as_drawn(context):
    start = random_rows(5)
    found, scored, _ = score(context, features(context), start)
    alone, _, _ = score(context, start)
    assert found["mean_at_start"] == alone["mean"] < 0.9
    assert found["fraction_0.8_at_start"] == alone["fraction_0.8"]
    assert found["mean"] == pytest.approx(1.0, abs=1e-6)
    assert scored.items["best_cosine_at_start"] == best_cosines(features(context), start).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_matter(chunk, monkeypatch):
    wanted, rows = random_rows(1), random_rows(2, 33)
    brute = (wanted.double() @ rows.double().T).max(1).values
    monkeypatch.setattr(_cosines, "_CHUNK", chunk)
    torch.testing.assert_close(best_cosines(wanted, rows).double(), brute, rtol=1e-5, atol=1e-6)


def test_the_table_groups_features_by_frequency(context):
    _, scored, _ = score(context, random_rows(), quantiles=6)
    items = scored.items
    assert items["feature"] == list(range(N))
    assert items["probability"] == context.backbone.probabilities().tolist()
    assert [items["frequency_group"].count(group) for group in range(6)] == [10] * 6
    order = sorted(range(N), key=lambda feature: items["probability"][feature])
    assert [items["frequency_group"][feature] for feature in order] == [place // 10 for place in range(N)]


def test_it_applies_where_the_truth_is_known(context):
    metric = FeatureRecovery(FeatureRecoveryConfig())
    assert metric.applicable(context.backbone) is None
    blind = MemoryBackbone(normal(10, D))
    assert "not known" in metric.applicable(blind).reason
    with pytest.raises(PluginError):
        metric.prepare(FakeContext(None, blind))


def test_a_group_counts_its_own_features(context):
    """Of the features by frequency every second is a direction of the decoder, from the middle on all."""
    order = torch.argsort(context.backbone.probabilities())
    known = torch.cat([order[: N // 2][::2], order[N // 2 :]])
    rest = torch.zeros(N - len(known), D)
    start = features(context)[order[: N // 4]]
    found, scored, _ = score(context, torch.cat([features(context)[known], rest]), start, quantiles=4)
    groups = [found[f"fraction_0.8_group_{number}"] for number in range(1, 5)]
    by_hand = [
        [c > 0.8 for c, g in zip(scored.items["best_cosine"], scored.items["frequency_group"], strict=True) if g == k]
        for k in range(4)
    ]
    assert groups == [pytest.approx(sum(hits) / len(hits)) for hits in by_hand]
    assert groups[2:] == [1.0, 1.0]
    assert found["fraction_0.8_group_1_at_start"] == pytest.approx(1.0)
    assert found["fraction_0.8_group_4_at_start"] == 0.0
    assert groups[0] < 0.8
    assert scored.scores["fraction_0.8_group_1"].n == 15


def test_groups_need_frequencies_that_differ_and_features_enough():
    alike = FakeContext(
        None, build("backbone", "synthetic", d_in=D, n_features=N, probability={"type": "constant", "p": 0.05})
    )
    found, _, _ = score(alike, random_rows())
    assert found["fraction_0.8_group_01"].reason == "all features fire equally often"
    few = FakeContext(None, build("backbone", "synthetic", d_in=D, n_features=3))
    found, _, _ = score(few, random_rows(), quantiles=4)
    reasons = [getattr(found[f"fraction_0.8_group_{number}"], "reason", None) for number in range(1, 5)]
    assert reasons.count("fewer features than the 4 groups") == 1


def test_more_is_recovered_at_lower_thresholds(context):
    truth = features(context)
    noisy = torch.nn.functional.normalize(truth + 0.16 * normal(N, D, seed=4), dim=1)
    found, scored, _ = score(context, noisy)
    best = torch.tensor(scored.items["best_cosine"])
    for threshold in (0.7, 0.8, 0.9):
        assert found[f"fraction_{threshold}"] == pytest.approx(float((best > threshold).double().mean()))
    assert found["fraction_0.7"] > found["fraction_0.8"] > found["fraction_0.9"]


def test_names_follow_the_thresholds():
    named = FeatureRecovery(FeatureRecoveryConfig(threshold=0.95, also=(0.5, 0.95, 0.5), quantiles=2)).scores()
    assert set(named) == {
        "fraction_0.95",
        "fraction_0.95_at_start",
        "fraction_0.5",
        "fraction_0.5_at_start",
        "mean",
        "mean_at_start",
        "fraction_0.95_group_1",
        "fraction_0.95_group_2",
        "fraction_0.95_group_1_at_start",
        "fraction_0.95_group_2_at_start",
    }
    assert [name for name, info in named.items() if info.headline] == ["fraction_0.95", "mean"]


def test_thresholds_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="first six digits"):
        FeatureRecoveryConfig(threshold=0.8, also=(0.8000001,))
