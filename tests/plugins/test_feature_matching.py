"""Feature matching and firing on SAEs whose score is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from saebench_plugins.metrics.feature_firing import FeatureFiring, FeatureFiringConfig, closest_features
from saebench_plugins.metrics.feature_matching import FeatureMatching, FeatureMatchingConfig, absolute_cosines, matched

from saebench_core.errors import PluginError
from saebench_core.interfaces.metric import NotApplicable, Subject
from saebench_core.rules import ReLU, TopK
from saebench_core.sae import SparseAutoencoder
from tests.helpers.contexts import FakeContext
from tests.helpers.training import MemoryBackbone, build, generator, normal

D, N, ROWS = 20, 30, 6000


@pytest.fixture
def context():
    probability = {"type": "log_uniform", "low": 0.001, "high": 0.1}
    return FakeContext(None, build("backbone", "synthetic", d_in=D, n_features=N, probability=probability))


def orthogonal(context):
    """Make the features an orthonormal set, so that a tied encoder finds the true codes."""
    backbone = context.backbone
    backbone._features = torch.linalg.qr(normal(N, N, seed=3))[0]
    return backbone._features


def sae_of(encoder, decoder, rule=None):
    return SparseAutoencoder.start(encoder.T, decoder, torch.zeros(decoder.shape[1]), rule or ReLU(), "none")


def score(metric, context, sae):
    prepared = metric.prepare(context)
    scored = metric.score(Subject(sae, lambda: sae.w_dec), prepared, context)
    assert set(scored.scores) == set(metric.scores())
    return scored, prepared


def matching(context, decoder):
    scored, prepared = score(FeatureMatching(FeatureMatchingConfig()), context, sae_of(decoder, decoder))
    return {name: found.value for name, found in scored.scores.items()}, scored, prepared


def firing(context, sae, rows=ROWS):
    scored, prepared = score(FeatureFiring(FeatureFiringConfig(rows=rows)), context, sae)
    return {name: getattr(found, "value", found) for name, found in scored.scores.items()}, scored, prepared


def test_the_true_dictionary_is_matched_in_any_order_and_sign(context):
    truth = context.backbone.features()
    order = torch.randperm(N, generator=generator(1))
    found, scored, _ = matching(context, -3.0 * truth[order])
    at_start = {"mcc_at_start": found["mcc"], "uniqueness_at_start": 1.0}
    assert found == {"mcc": pytest.approx(1.0, abs=1e-6), "uniqueness": 1.0} | at_start
    assert order[torch.tensor(scored.items["latent"])].tolist() == scored.items["feature"]


def test_one_direction_serves_one_feature(context):
    truth = context.backbone.features()
    found, scored, _ = matching(context, truth[:1].repeat(N, 1))
    others = (truth @ truth[0]).abs().mean()
    assert found["mcc"] == pytest.approx(float(others), abs=1e-6)
    assert found["uniqueness"] == pytest.approx(1 / N)
    assert scored.scores["mcc"].n == N


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_no_other_matching_has_a_larger_sum(n_features, d_sae, seed):
    cosines = absolute_cosines(normal(n_features, 4, seed=seed), normal(d_sae, 4, seed=seed + 1))
    values, pairs = matched(cosines)
    small, large = sorted((n_features, d_sae))
    table = cosines if n_features <= d_sae else cosines.T
    best = max(
        sum(float(table[row, col]) for row, col in enumerate(chosen))
        for chosen in itertools.permutations(range(large), small)
    )
    assert float(values.sum()) == pytest.approx(best, abs=1e-6)
    assert torch.equal(values.float(), cosines[pairs[0], pairs[1]])


def test_random_directions_match_as_the_floor_says(context):
    draws = [matching(context, normal(N, D, seed=seed)) for seed in range(20)]
    values = torch.tensor([found["mcc"] for found, _, _ in draws])
    assert abs(draws[0][2].floors["mcc"] - float(values.mean())) < 4 * float(values.std())


def test_zero_directions_have_no_cosine(context):
    found, _, _ = matching(context, torch.zeros(4, D))
    assert found["mcc"] == 0.0 and found["uniqueness"] == 0.25


def test_a_perfect_sae_fires_with_its_features():
    probability = {"type": "log_uniform", "low": 0.001, "high": 0.1}
    context = FakeContext(None, build("backbone", "synthetic", d_in=N, n_features=N, probability=probability))
    truth = orthogonal(context)
    sae = sae_of(truth, truth)
    with torch.no_grad():
        sae.tensors["b_enc"].fill_(-0.1)  # above rounding, below every magnitude
    found, scored, _ = firing(context, sae)
    assert scored.items["fires"] == scored.items["both"] == scored.items["feature_fires"]
    alive = torch.tensor(scored.items["fires"]) > 0
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(float(alive.double().mean()))
    assert found["support_precision"] == 1.0 and 0.8 < found["shrinkage"] < 1.0


def test_firing_by_hand(context):
    """Latents 0 and 1 point at feature 3, latent 2 at feature 7 with the wrong sign; the encoder fires by its bias."""
    truth = context.backbone.features()
    decoder = torch.stack([truth[3], 2.0 * truth[3], -truth[7]])
    sae = sae_of(torch.zeros(3, D), decoder)
    with torch.no_grad():
        sae.tensors["b_enc"].copy_(torch.tensor([1.0, -1.0, 0.5]))  # latents 0 and 2 always fire, 1 never
    found, scored, _ = firing(context, sae)
    codes = context.backbone.codes("evaluation", 0, ROWS).selection.cols
    three, seven = (int((codes == feature).sum()) / ROWS for feature in (3, 7))
    assert scored.items["feature"] == [3, 3, 7]
    assert found["precision"] == pytest.approx((three + seven) / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((2 * three / (1 + three) + 2 * seven / (1 + seven)) / 3)
    assert found["support_precision"] == pytest.approx((three + seven) / 2)
    assert found["support_precision_by_chance"] == pytest.approx((three + seven) / 2)  # they fire whatever the row
    assert found["silent"] == pytest.approx(1 / 3)


def test_counts_equal_those_of_dense_tables(context):
    sae = sae_of(normal(40, D, seed=5), normal(40, D, seed=6), TopK(4))
    found, scored, _ = firing(context, sae)
    x = torch.cat([batch.inputs for batch in context.backbone.stream("activations", "evaluation", 0, ROWS)])
    fired = sae.encode(x).to_dense() != 0
    feature = closest_features(context.backbone.features(), sae.w_dec).feature
    true = context.backbone.codes("evaluation", 0, ROWS).to_dense()[:, feature] > 0
    assert scored.items["fires"] == fired.sum(0).tolist()
    assert scored.items["both"] == (fired & true).sum(0).tolist()
    assert scored.items["feature_fires"] == true.sum(0).tolist()
    chance = (fired.double() @ true.double().mean(0)).sum() / fired.sum()
    assert found["support_precision_by_chance"] == pytest.approx(float(chance))
    norms = sae.reconstruct(x).norm(dim=1) / x.norm(dim=1)
    assert found["shrinkage"] == pytest.approx(float(norms[x.norm(dim=1) > 1e-6].mean()), rel=1e-5)


def test_an_sae_that_never_fires_says_so(context):
    sae = sae_of(torch.zeros(3, D), normal(3, D))
    with torch.no_grad():
        sae.tensors["b_enc"].fill_(-1.0)
    found, _, _ = firing(context, sae, rows=200)
    assert isinstance(found["support_precision"], NotApplicable)
    assert (found["precision"], found["recall"], found["f1"], found["silent"]) == (0.0, 0.0, 0.0, 1.0)


def test_a_perfect_dictionary_is_silent_as_often_as_expected(context):
    found = [firing(context, sae_of(normal(2, D), normal(2, D)), rows)[2].ceilings["silent"] for rows in (100, 6000)]
    p = context.backbone.probabilities().double()
    assert found == [pytest.approx(float(((1 - p) ** rows).mean()), rel=1e-6) for rows in (100, 6000)]


@pytest.mark.parametrize("kind", ["feature_matching", "feature_firing"])
def test_without_known_features_they_do_not_apply(kind):
    metric = {
        "feature_matching": FeatureMatching(FeatureMatchingConfig()),
        "feature_firing": FeatureFiring(FeatureFiringConfig()),
    }[kind]
    backbone = MemoryBackbone(normal(10, D))
    assert metric.applicable(backbone).reason == "the backbone's true features are not known"
    with pytest.raises(PluginError, match="without known features"):
        metric.prepare(FakeContext(None, backbone))
