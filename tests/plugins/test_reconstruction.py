"""Reconstruction scores by hand."""

from __future__ import annotations

import math

import pytest
import torch
from saebench_plugins.metrics import reconstruction
from saebench_plugins.metrics.reconstruction import ReconstructionConfig, ReconstructionMetric

from saebench_core.interfaces.metric import NotApplicable, Subject
from saebench_core.rules import ReLU, TopK
from saebench_core.sae import SparseAutoencoder
from tests.helpers.contexts import FakeContext
from tests.helpers.training import MemoryBackbone, activations, random_sae

HAND = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, -2.0]])


def sae_of(w_enc, w_dec, b_enc=None, b_dec=None, rule=None):
    w_enc, w_dec = torch.tensor(w_enc), torch.tensor(w_dec)
    sae = SparseAutoencoder.start(w_enc, w_dec, torch.tensor(b_dec or [0.0, 0.0]), rule or ReLU(), "none")
    if b_enc is not None:
        sae.tensors["b_enc"].copy_(torch.tensor(b_enc))
    return sae


def prepared_and_scored(sae, x, rows=1000):
    context, metric = FakeContext(None, MemoryBackbone(x)), ReconstructionMetric(ReconstructionConfig(rows=rows))
    prepared = metric.prepare(context)
    scored = metric.score(Subject(sae, lambda: sae.w_dec), prepared, context)
    assert set(scored.scores) == set(metric.scores())
    return prepared, scored


def values(sae, x, rows=1000):
    scores = prepared_and_scored(sae, x, rows)[1].scores
    return {name: score.value for name, score in scores.items() if not isinstance(score, NotApplicable)}


EYE = [[1.0, 0.0], [0.0, 1.0]]
BOTH_SIGNS = ([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]], [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def test_scores_by_hand():
    # codes: (1, 0), (3, 0), (0, 2), nothing; reconstructions: halved first dimension, the last row lost
    found = values(sae_of(EYE, [[0.5, 0.0], [0.0, 1.0]]), HAND)
    error = (0.5**2 + 1.5**2 + 0 + 2**2) / 4
    variance = (1 + 9 + 4 + 4) / 4 - 1.0  # mean (1, 0)
    assert found["mse"] == pytest.approx(error, rel=1e-12)
    assert found["explained_variance"] == pytest.approx(1 - error / variance, rel=1e-12)
    assert found["cosine"] == pytest.approx(3 / 4)
    assert found["l0"] == 3 / 4
    assert found["alive"] == 1.0


def test_explained_variance_is_a_ratio_of_means_not_a_mean_of_ratios():
    found = values(sae_of(EYE, [[0.5, 0.0], [0.0, 1.0]]), HAND)
    errors, spreads = torch.tensor([0.25, 2.25, 0, 4.0]), torch.tensor([0.0, 4.0, 5.0, 5.0])
    assert found["explained_variance"] == pytest.approx(float(1 - errors.mean() / spreads.mean()))
    assert found["explained_variance"] != pytest.approx(float((1 - errors[1:] / spreads[1:]).mean()), abs=0.01)


def test_a_bias_counts_as_error():
    # the variance of the residual is zero here; its mean is not
    found = values(sae_of(*BOTH_SIGNS, b_dec=[0.5, 0.0]), HAND)
    assert found["mse"] == pytest.approx(0.25)
    assert found["explained_variance"] == pytest.approx(1 - 0.25 / 3.5)


def test_a_perfect_sae_explains_everything():
    found = values(sae_of(*BOTH_SIGNS), HAND)
    assert found == {"explained_variance": 1.0, "mse": 0.0, "cosine": 1.0, "l0": 1.0, "alive": 0.75}


def test_the_mean_explains_nothing_and_is_the_floor():
    x = activations(500)
    sae = random_sae(ReLU())
    sae.tensors["b_enc"].fill_(-1e6)
    sae.tensors["b_dec"].copy_(x.mean(0))
    prepared, scored = prepared_and_scored(sae, x)
    found = {name: score.value for name, score in scored.scores.items()}
    assert found["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert (found["l0"], found["alive"]) == (0.0, 0.0)
    assert prepared.floors == {name: pytest.approx(found[name], abs=1e-6) for name in prepared.floors}
    assert set(prepared.floors) == {"explained_variance", "mse", "cosine"}
    assert prepared.ceilings == {"explained_variance": 1.0, "mse": 0.0, "cosine": 1.0}


def test_zeros_do_worse_than_the_mean():
    found = values(sae_of(EYE, EYE, b_enc=[-100.0, -100.0]), HAND)
    assert found["explained_variance"] == pytest.approx(1 - 4.5 / 3.5)
    assert found["cosine"] == 0.0


def test_a_selected_entry_of_value_zero_is_not_active():
    found = values(sae_of(EYE, EYE, rule=TopK(2)), HAND)
    assert found["l0"] == 3 / 4


def test_dead_latents_are_not_alive():
    found = values(sae_of(EYE, EYE, b_enc=[0.0, -100.0]), HAND)
    assert found["alive"] == 0.5


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_scores_do_not_depend_on_batches(batch, monkeypatch):
    x, sae = activations(300), random_sae(TopK(3))
    prepared, whole = prepared_and_scored(sae, x)
    monkeypatch.setattr(reconstruction, "_BATCH", batch)
    again, parts = prepared_and_scored(sae, x)
    for name, score in whole.scores.items():
        assert parts.scores[name].value == pytest.approx(score.value, rel=1e-6)
        assert parts.scores[name].n == score.n
    assert again.facts["variance"] == pytest.approx(prepared.facts["variance"], rel=1e-12)
    assert parts.items["frequency"] == whole.items["frequency"]


def test_sums_are_kept_in_fp64():
    x = 1e4 + activations(3000)  # the variance is 1e-8 of the mean square
    prepared, scored = prepared_and_scored(random_sae(TopK(3)), x, rows=3000)
    wide = x.double()
    variance = float((wide - wide.mean(0)).square().sum(1).mean())
    assert prepared.facts["variance"] == pytest.approx(variance, rel=1e-5)
    assert prepared.tensors["mean"].dtype == torch.float64
    assert math.isfinite(scored.scores["explained_variance"].value)


def test_only_the_rows_asked_for_are_read():
    x = activations(100)
    prepared, scored = prepared_and_scored(random_sae(ReLU()), x, rows=40)
    assert prepared.facts["rows"] == 40
    assert scored.scores["mse"].n == 40
    assert values(random_sae(ReLU()), x, rows=40) == values(random_sae(ReLU()), x[:40])


def test_rows_that_do_not_vary_have_no_explained_variance():
    _, scored = prepared_and_scored(sae_of(EYE, EYE), torch.ones(10, 2))
    assert scored.scores["explained_variance"] == NotApplicable("the evaluation activations do not vary")
    assert scored.scores["mse"].value == 0.0


def test_the_table_has_a_line_for_each_latent():
    _, scored = prepared_and_scored(sae_of(EYE, [[0.5, 0.0], [3.0, 4.0]], b_enc=[0.0, -100.0]), HAND)
    assert scored.items["latent"] == [0, 1]
    assert scored.items["frequency"] == [0.5, 0.0]
    assert scored.items["decoder_norm"] == [0.5, 5.0]
    assert scored.items["encoder_decoder_cosine"] == pytest.approx([1.0, 0.8])
    assert scored.items["log10_frequency_bin"] == [7, 0]


def test_scores_lie_in_their_declared_ranges():
    metric = ReconstructionMetric(ReconstructionConfig())
    found = values(random_sae(TopK(3)), activations(200))
    for name, info in metric.scores().items():
        assert info.low is None or found[name] >= info.low
        assert info.high is None or found[name] <= info.high
    assert metric.applicable(MemoryBackbone(HAND)) is None
