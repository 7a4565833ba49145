"""Correlated features of the synthetic backbone fire as often as they should, and together as often as they should."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.backbones._correlations import FullCorrelation, LowRankCorrelation
from saebench_plugins.backbones.synthetic import Synthetic, SyntheticConfig
from scipy import stats

from tests.helpers.contexts import FakeContext
from tests.helpers.training import generator

ROWS = 10 * 4096
HALF = torch.full((50,), 0.5)
KINDS = [{"type": "low_rank", "rank": 2, "scale": 0.5}, {"type": "full", "scale": 0.8, "degrees": 3}]


def make(**keys):
    given = {"d_in": 6, "n_features": 12, "probability": {"type": "linear", "low": 0.05, "high": 0.4}}
    backbone = Synthetic(SyntheticConfig.model_validate(given | keys))
    backbone.prepare(FakeContext(None))
    return backbone


@pytest.mark.parametrize("correlation", KINDS)
def test_each_feature_fires_as_often_as_its_probability_says(correlation):
    backbone = make(correlation=correlation)
    counts = (backbone.codes("train", 0, ROWS).to_dense() > 0).sum(0).double()
    p = backbone.probabilities().double()
    assert bool(((counts - ROWS * p).abs() < 5 * (ROWS * p * (1 - p)).sqrt()).all())


@pytest.mark.parametrize("correlation", KINDS)
def test_pairs_fire_together_as_often_as_two_normals_are_above_their_thresholds(correlation):
    backbone = make(correlation=correlation)
    fired = (backbone.codes("train", 0, ROWS).to_dense() > 0).double()
    p, rho = backbone.probabilities().double(), backbone._drawing.law.correlation().double()
    independent = 0
    for first, second in [(0, 1), (0, 5), (3, 8), (10, 11), (2, 9)]:
        limits = [stats.norm.ppf(float(p[one])) for one in (first, second)]
        cov = [[1.0, float(rho[first, second])], [float(rho[first, second]), 1.0]]
        expected = float(stats.multivariate_normal([0, 0], cov).cdf(limits))
        found = float((fired[:, first] * fired[:, second]).mean())
        assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / ROWS) + 1e-6
        independent += abs(found - float(p[first] * p[second])) < 5 * math.sqrt(expected / ROWS)
    assert independent < 4, "some pairs are told from independent ones, or the test shows nothing"


@pytest.mark.parametrize("drawn", [LowRankCorrelation(rank=3, scale=2.0), LowRankCorrelation(), FullCorrelation()])
def test_variances_are_one(drawn):
    found = drawn.draw(HALF, generator(0))
    assert torch.allclose(found.correlation().diagonal(), torch.ones(50), atol=1e-5)
    assert float(torch.linalg.eigvalsh(found.correlation()).min()) > 0


def test_a_full_correlation_is_of_full_rank_and_a_few_degrees_are_as_many_causes():
    for drawn, rank in ((FullCorrelation(scale=1.0), 50), (FullCorrelation(scale=1.0, degrees=4), 4)):
        found = drawn.draw(HALF, generator(0)).correlation().double()
        assert int(torch.linalg.matrix_rank(found, rtol=1e-6)) == rank
    half = FullCorrelation(scale=0.5).draw(HALF, generator(0)).correlation()
    whole = FullCorrelation(scale=1.0).draw(HALF, generator(0)).correlation()
    torch.testing.assert_close(half, 0.5 * whole + 0.5 * torch.eye(50), atol=1e-6, rtol=0)


def test_loadings_beyond_the_limit_leave_a_hundredth():
    found = LowRankCorrelation(rank=3, scale=50.0).draw(HALF, generator(0))
    assert torch.allclose(found.own.square(), torch.full((50,), 0.01), atol=1e-5)


@pytest.mark.parametrize("correlation", KINDS)
@pytest.mark.parametrize(("start", "count"), [(0, 1), (4095, 2), (300, 5000)])
def test_rows_do_not_depend_on_the_cut(correlation, start, count):
    backbone = make(correlation=correlation)
    whole = torch.cat([batch.inputs for batch in backbone.stream("activations", "train", 0, 6000)])
    part = torch.cat([batch.inputs for batch in backbone.stream("activations", "train", start, count)])
    assert torch.equal(part, whole[start : start + count])


def test_a_scale_beyond_one_is_refused():
    with pytest.raises(ValidationError, match="scale"):
        make(correlation={"type": "full", "scale": 1.5})
