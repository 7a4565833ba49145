"""Feature detection on SAEs whose latents are known to tell features, or not to."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st
from saebench_plugins.metrics.feature_detection import FeatureDetection, FeatureDetectionConfig, best_latents
from scipy.sparse import csr_array

from saebench_core.errors import PluginError
from saebench_core.interfaces.metric import NotApplicable, Observed, Subject
from saebench_core.rules import ReLU, TopK
from saebench_core.sae import SparseAutoencoder
from tests.helpers.contexts import FakeContext
from tests.helpers.training import MemoryBackbone, build, generator, normal

N, ROWS = 16, 5000
LOG_UNIFORM = {"type": "log_uniform", "low": 0.001, "high": 0.2}


@pytest.fixture
def context():
    """Sixteen orthonormal features."""
    found = FakeContext(None, build("backbone", "synthetic", d_in=N, n_features=N, probability=LOG_UNIFORM))
    found.backbone._features = torch.linalg.qr(normal(N, N, seed=3))[0]
    return found


def sae_of(encoder, decoder, bias, rule=None):
    sae = SparseAutoencoder.start(encoder.T, decoder, torch.zeros(N), rule or ReLU(), "none")
    with torch.no_grad():
        sae.tensors["b_enc"].copy_(torch.as_tensor(bias).expand(encoder.shape[0]))
    return sae


def score(context, sae, rows=ROWS):
    metric = FeatureDetection(FeatureDetectionConfig(rows=rows))
    prepared = metric.prepare(context)
    scored = metric.score(Subject(sae, lambda: sae.w_dec), prepared, context)
    assert set(scored.scores) == set(metric.scores())
    return {name: getattr(found, "value", found) for name, found in scored.scores.items()}, scored.items, prepared


def fired(context, rows=ROWS):
    return context.backbone.codes("evaluation", 0, rows).to_dense() != 0


def test_a_latent_that_fires_with_its_feature_tells_it_whatever_its_direction(context):
    """The encoder is the truth in another order, the decoder random: every feature is told without error."""
    order = torch.randperm(N, generator=generator(1))
    sae = sae_of(context.backbone.features()[order], normal(N, N, seed=8), -0.1)
    found, items, _ = score(context, sae)
    assert found == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert order[items["latent"]].tolist() == items["feature"]
    assert items["feature_fires"] == fired(context)[1::2].sum(0)[items["feature"]].tolist()
    assert set(items["alike"]) == {1}


def test_a_latent_that_always_fires_is_the_floor(context):
    found, items, prepared = score(context, sae_of(torch.zeros(3, N), normal(3, N), [1.0, -1.0, 1.0]))
    even, odd = (fired(context)[parity::2].sum(0).double() for parity in (0, 1))
    counts = odd[(even > 0) & (odd > 0)]
    assert prepared.floors == {
        "precision": pytest.approx(float(counts.mean()) / (ROWS / 2)),
        "f1": pytest.approx(float((2 * counts / (counts + ROWS / 2)).mean())),
    }
    assert found == {"recall": 1.0, **{name: pytest.approx(floor) for name, floor in prepared.floors.items()}}
    assert set(items["latent"]) == {0} and set(items["alike"]) == {2}


def test_the_best_latent_is_chosen_for_each_feature(context):
    """By hand: latent 0 fires with feature 2 or 3, latent 1 with feature 2 alone, latent 2 never."""
    truth = context.backbone.features()
    sae = sae_of(torch.stack([truth[2] + truth[3], truth[2], truth[0]]), normal(3, N), [-0.1, -0.1, -1e9])
    _, items, _ = score(context, sae)
    two, three = fired(context)[1::2, 2], fired(context)[1::2, 3]
    of = {name: dict(zip(items["feature"], column, strict=True)) for name, column in items.items()}
    assert (of["latent"][2], of["f1"][2]) == (1, 1.0)
    assert of["latent"][3] == 0 and of["recall"][3] == 1.0
    assert of["precision"][3] == pytest.approx(float(three.sum() / (two | three).sum()))
    assert of["f1"][3] == pytest.approx(float(2 * three.sum() / (three.sum() + (two | three).sum())))


@settings(max_examples=25, deadline=None)
@given(d_sae=st.integers(1, 40), k=st.integers(1, 6), seed=st.integers(0, 2**16), rows=st.integers(1, 400))
def test_scores_are_those_of_dense_tables(d_sae, k, seed, rows):
    backbone = build("backbone", "synthetic", d_in=N, n_features=3 * N, probability=LOG_UNIFORM)
    sae = sae_of(normal(d_sae, N, seed=seed), normal(d_sae, N, seed=seed + 1), 0.0, TopK(min(k, d_sae)))
    found, items, _ = score(FakeContext(None, backbone), sae, rows)
    x = torch.cat([batch.inputs for batch in backbone.stream("activations", "evaluation", 0, rows)])
    features, latents = backbone.codes("evaluation", 0, rows).to_dense() != 0, sae.encode(x).to_dense() != 0
    present = [f for f in range(3 * N) if features[0::2, f].any() and features[1::2, f].any()]
    if not present:
        assert all(isinstance(one, NotApplicable) for one in found.values())
        return
    assert items["feature"] == present
    for place, feature in enumerate(present):
        chosen = [_of(features[0::2, feature], latents[0::2, latent]) for latent in range(d_sae)]
        alike = [latent for latent in range(d_sae) if chosen[latent] == max(chosen) > (0, 0, 0)]
        assert items["alike"][place] == len(alike) and items["latent"][place] == min(alike, default=-1)
        told = [_of(features[1::2, feature], latents[1::2, latent]) for latent in alike]
        means = [float(sum(one) / len(alike)) for one in zip(*told, strict=True)] or [0.0, 0.0, 0.0]
        assert [items[name][place] for name in ("f1", "precision", "recall")] == pytest.approx(means, rel=1e-12)
    assert found["f1"] == pytest.approx(sum(items["f1"]) / len(present))


def _of(feature, latent):
    """Return F1, precision and recall as fractions; all 0 where a latent never fires with the feature."""
    both, fires, count = int((feature & latent).sum()), int(latent.sum()), int(feature.sum())
    return Fraction(2 * both, fires + count), Fraction(both, max(1, fires)), Fraction(both, count)


def test_the_best_of_many_latents_is_not_above_the_floor_by_chance():
    """400 latents that know nothing of the features, as rare as they are: told by its own rows the best is above it."""
    rows, features = 4000, 200
    world = FakeContext(None, build("backbone", "synthetic", d_in=N, n_features=features, probability=LOG_UNIFORM))
    truth = world.backbone.codes("evaluation", 0, rows).to_dense() != 0
    rates = truth.double().mean(0).repeat(2)
    latents = torch.rand(rows, 2 * features, generator=generator(5)) < rates
    asked = [f for f in range(features) if truth[0::2, f].any() and truth[1::2, f].any()]
    tables = [csr_array(table.int().numpy()) for table in (truth.T, latents)]
    found = sum(best.f1 for best in best_latents(*tables, asked)) / len(asked)
    twice = [
        csr_array(table.int().numpy()) for table in (truth.T.repeat_interleave(2, 1), latents.repeat_interleave(2, 0))
    ]
    own = sum(best.f1 for best in best_latents(*twice, asked)) / len(asked)
    counts = truth[1::2].sum(0)[asked].double()
    floor = float((2 * counts / (counts + rows // 2)).mean())
    assert found < floor < 0.75 * own


def test_the_order_of_equal_latents_does_not_matter():
    """Latents that are alike in the even rows, where they are chosen, and not in the odd ones: their mean is told."""
    feature, latents = torch.zeros(1, 40, dtype=torch.int32), torch.zeros(40, 3, dtype=torch.int32)
    feature[0, :12] = 1
    latents[:12:2] = 1  # in the even rows all three fire with the feature
    latents[1:12:2, 0], latents[1::2, 1] = 1, 1  # in the odd ones the first as well, the second always, the third never
    expected = (3, 1 + 0.3 + 0, 1 + 1 + 0, 1 + 12 / 26 + 0)
    for order in itertools.permutations(range(3)):
        (best,) = best_latents(csr_array(feature.numpy()), csr_array(latents[:, list(order)].numpy()), [0])
        assert best[1:] == (expected[0], *(pytest.approx(total / 3) for total in expected[1:]))
        assert best.latent == 0


def test_of_equal_f1_the_more_precise_latent_is_taken():
    """In 6 rows of each half the feature fires; latents in 12, 6 of them its, and in 3 of its: 12 / 18 = 6 / 9."""
    feature, latents = torch.zeros(1, 40, dtype=torch.int32), torch.zeros(40, 2, dtype=torch.int32)
    feature[0, :12] = 1
    latents[:24, 0], latents[:6, 1] = 1, 1
    for order in ([0, 1], [1, 0]):
        tables = csr_array(feature.numpy()), csr_array(latents[:, order].numpy())
        (best,) = best_latents(*tables, [0])
        assert best == (order.index(1), 1, 1.0, 0.5, 6 / 9)


def test_an_sae_that_never_fires_tells_nothing(context):
    found, items, _ = score(context, sae_of(torch.zeros(3, N), normal(3, N), -1.0))
    assert found == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert set(items["latent"]) == {-1}


def test_without_known_features_it_does_not_apply():
    backbone = MemoryBackbone(normal(10, N))
    metric = FeatureDetection(FeatureDetectionConfig())
    assert metric.applicable(backbone).reason == "the backbone's true features are not known"
    with pytest.raises(PluginError, match="without known features"):
        metric.prepare(FakeContext(None, backbone))


def test_f1_is_drawn_sorted_and_against_frequency():
    def seen(constraint, seed, f1, probability=(0.01, 0.1, 0.1)):
        items = {"probability": list(probability), "frequency_group": [0, 9, 9], "f1": f1}
        return Observed("toy", "a", "topk", constraint, 20.0, seed, constraint == "trained", items)

    metric = FeatureDetection(FeatureDetectionConfig())
    found = [seen("trained", 0, [0.1, 0.6, 1.0]), seen("trained", 1, [0.3, 0.6, 0.8]), seen("untrained", 0, [0.0] * 3)]
    ranked, frequent = metric.figures(found)
    assert ranked.panels[0].series[0].y[0] == pytest.approx(0.9) and ranked.panels[0].series[0].y[-1] == 0.2
    assert frequent.panels[0].series[0].y == (pytest.approx(0.2), pytest.approx(0.75))
    assert [one.label for one in frequent.panels[0].series] == ["trained", "untrained"]
    assert [chart.x_label for chart in metric.figures([seen("trained", 0, [0.1] * 3, (0.1,) * 3)])] == [
        "share of features that fire"
    ]
    assert metric.figures([]) == []
