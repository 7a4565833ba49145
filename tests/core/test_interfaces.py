"""Directions at the start: their laws, and what twins share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

from saebench_core.errors import InputError
from saebench_core.interfaces.constraint import Statistics, draw_directions
from saebench_core.randomness import tensor_sha256
from tests.helpers.training import (
    CONSTRAINT_INITS,
    activations,
    base_draw,
    build,
    make_trainee,
    normal,
    statistics_of,
    trainable_names,
    truth_of,
)

D, M = 8, 20_000


def draw(seed=0, d_sae=M, d_in=D):
    return base_draw(seed, d_sae, d_in)


def spread_statistics():
    basis = torch.linalg.qr(normal(D, D, seed=3, dtype=torch.float64)).Q
    covariance = basis @ torch.diag(torch.tensor([9.0, 4.0, 1.0, 1.0, 0.5, 0.1, 0.01, 0.0]).double()) @ basis.T
    return Statistics(1000, torch.full((D,), 5.0).double(), 1.0, covariance, truth_of(D))


@pytest.mark.parametrize("init", CONSTRAINT_INITS)
def test_directions_have_unit_norm(init):
    rows = draw_directions(draw(), init, spread_statistics())
    assert rows.shape == (M, D)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(M), rtol=1e-6, atol=1e-6)


def test_iso_directions_are_uniform_on_the_sphere():
    rows = draw_directions(draw(), "iso", spread_statistics()).double()
    # a coordinate of a uniform direction has the law of 2 Beta((d - 1) / 2, (d - 1) / 2) - 1
    law = stats.beta((D - 1) / 2, (D - 1) / 2, loc=-1, scale=2)
    oblique = torch.nn.functional.normalize(normal(D, seed=9, dtype=torch.float64), dim=0)
    for axis in (torch.eye(D).double()[0], oblique, torch.full((D,), D**-0.5).double()):
        assert stats.kstest((rows @ axis).numpy(), law.cdf).pvalue > 1e-4
    cosines = (rows[: M // 2] * rows[M // 2 :]).sum(1)  # of independent pairs: the same law
    assert stats.kstest(cosines.numpy(), law.cdf).pvalue > 1e-4
    assert float(rows.mean(0).norm()) < 4 / M**0.5  # its mean square is 1 / M
    second = rows.T @ rows / M - torch.eye(D).double() / D
    assert float(second.abs().max()) < 6 * (2 / (D * (D + 2)) / M) ** 0.5


def test_true_directions_are_the_most_frequent_features_and_the_draw_beyond_them():
    found, known = draw(0, 40), spread_statistics()
    rows = draw_directions(found, "truth", known)
    torch.testing.assert_close(rows[:30], known.truth.features.flip(0))
    torch.testing.assert_close(rows[30:], torch.nn.functional.normalize(found.normal[30:], dim=1))
    few = draw_directions(draw(0, 7), "truth", known)
    torch.testing.assert_close(few, known.truth.features.flip(0)[:7])


def test_true_directions_need_a_backbone_that_knows_its_features():
    with pytest.raises(InputError, match="this backbone knows none; take iso, cov or kaiming"):
        draw_directions(draw(0, 5), "truth", replace(spread_statistics(), truth=None))


def test_kaiming_directions_favour_the_corners_of_the_cube():
    found = draw()
    rows = draw_directions(found, "kaiming", spread_statistics())
    torch.testing.assert_close(rows, torch.nn.functional.normalize(found.uniform, dim=1))
    assert float(found.uniform.min()) >= -1
    assert float(found.uniform.max()) <= 1
    assert stats.kstest(found.uniform.flatten()[:20_000].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
    largest = [
        draw_directions(found, init, spread_statistics()).abs().max(1).values.mean() for init in ("kaiming", "iso")
    ]
    assert float(largest[0]) < float(largest[1]) - 0.05


def test_cov_directions_follow_the_covariance():
    statistics = spread_statistics()
    found = draw()
    rows = draw_directions(found, "cov", statistics).double()
    values, vectors = torch.linalg.eigh(statistics.covariance)
    samples = found.normal.double() @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    torch.testing.assert_close(rows, torch.nn.functional.normalize(samples, dim=1), rtol=1e-5, atol=1e-6)
    # the samples themselves have the covariance: each entry within six standard errors of Wishart's law
    empirical = samples.T @ samples / M
    variances = statistics.covariance.diagonal()
    error = ((variances[:, None] * variances[None] + statistics.covariance**2) / M).sqrt()
    assert bool(((empirical - statistics.covariance).abs() <= 6 * error + 1e-12).all())
    # the directions put more weight on the axes of larger variance, in the same order, and none on the empty one
    weights = (rows @ vectors).square().mean(0)
    assert bool((weights.diff() > -1e-3).all())
    assert float(weights[0]) < 1e-10
    assert float(rows.mean(0).norm()) < 4 / M**0.5  # no mean is added


def test_cov_of_a_round_covariance_is_iso():
    round_statistics = Statistics(10, torch.zeros(D).double(), 1.0, 4.0 * torch.eye(D).double())
    rows = draw_directions(draw(), "cov", round_statistics)
    gram = rows[:200] @ rows[:200].T
    iso = draw_directions(draw(), "iso", round_statistics)[:200]
    torch.testing.assert_close(gram, iso @ iso.T, rtol=1e-5, atol=1e-5)


def test_the_base_draw_depends_on_seed_and_sizes_only():
    hashes = {init: tensor_sha256(draw(0, 50).normal) for init in CONSTRAINT_INITS}
    assert len(set(hashes.values())) == 1
    assert tensor_sha256(draw(0, 50).normal) != tensor_sha256(draw(1, 50).normal)
    kept = draw(0, 50)
    before = tensor_sha256(kept.normal), tensor_sha256(kept.uniform)
    for init in CONSTRAINT_INITS:
        draw_directions(kept, init, spread_statistics())
    assert before == (tensor_sha256(kept.normal), tensor_sha256(kept.uniform))
    assert abs(float(draw().normal.mean())) < 5 / (M * D) ** 0.5
    assert stats.kstest(draw().normal.flatten()[:20_000].numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("init", CONSTRAINT_INITS)
def test_twins_start_from_the_same_weights(init):
    starts = [make_trainee("topk", name, init=init).start for name in trainable_names("constraint")]
    assert len({tensor_sha256(start.w_dec) for start in starts}) == 1
    assert len({tensor_sha256(start.w_enc) for start in starts}) == 1


def test_starts_differ_between_inits_and_seeds():
    keys = [("iso", 0), ("cov", 0), ("kaiming", 0), ("iso", 1)]
    starts = {tensor_sha256(make_trainee("topk", "trained", seed=seed, init=init).start.w_dec) for init, seed in keys}
    assert len(starts) == 4


@pytest.mark.parametrize("name", trainable_names("constraint"))
def test_encoders_start_as_a_copy_of_the_transposed_decoder(name):
    start = build("constraint", name).initialise(draw(0, 30, 12), "iso", statistics_of(activations()))
    assert torch.equal(start.w_enc, start.w_dec.T)
    start.w_enc.zero_()
    assert float(start.w_dec.abs().sum()) > 0


def test_cov_directions_do_not_hang_on_the_basis_of_equal_variances():
    found = draw()
    size = found.normal.shape[1]
    alike = Statistics(1000, torch.zeros(size).double(), float(size), torch.eye(size, dtype=torch.float64))
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e-13
    nearly = Statistics(1000, alike.mean, alike.mean_square_norm, alike.covariance + noise + noise.T)
    rows = [draw_directions(found, "cov", statistics) for statistics in (alike, nearly)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
