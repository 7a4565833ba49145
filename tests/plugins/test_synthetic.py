"""The synthetic backbone: its laws, and that rows do not depend on how they are cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from saebench_plugins.backbones import synthetic
from saebench_plugins.backbones.synthetic import Synthetic, SyntheticConfig
from scipy import stats

from saebench_core.interfaces.backbone import GroundTruth
from tests.helpers.contexts import FakeContext

ROWS = 3 * 4096


def make(tmp_path=None, **keys):
    backbone = Synthetic(SyntheticConfig.model_validate({"d_in": 10, "n_features": 40} | keys))
    backbone.prepare(FakeContext(tmp_path))
    return backbone


def constant(p, **keys):
    return make(probability={"type": "constant", "p": p}, **keys)


def rows_of(backbone, start, count, split="train"):
    return torch.cat([batch.inputs for batch in backbone.stream("activations", split, start, count)])


WHOLE = make()
WHOLE_ROWS = rows_of(WHOLE, 0, ROWS)
WHOLE_CODES = WHOLE.codes("train", 0, ROWS).to_dense()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, ROWS - 1), st.integers(1, 6000))
def test_rows_and_codes_are_bit_equal_for_any_cut(start, count):
    count = min(count, ROWS - start)
    assert torch.equal(rows_of(WHOLE, start, count), WHOLE_ROWS[start : start + count])
    assert torch.equal(WHOLE.codes("train", start, count).to_dense(), WHOLE_CODES[start : start + count])


def test_rows_are_the_codes_times_the_features():
    torch.testing.assert_close(WHOLE_ROWS, WHOLE_CODES @ WHOLE.features(), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(*batch) for batch in WHOLE.stream("activations", "train", 0, 10))


def test_the_same_seed_gives_the_same_rows_and_splits_and_seeds_differ():
    assert torch.equal(rows_of(make(), 0, 500), WHOLE_ROWS[:500])
    parts = [rows_of(WHOLE, 0, 500, split) for split in ("train", "calibration", "evaluation")]
    parts += [rows_of(WHOLE, 4096, 500), rows_of(make(seed=1), 0, 500)]
    assert len({part.double().sum().item() for part in parts}) == 5
    assert not torch.equal(make(seed=1).features(), WHOLE.features())


def test_it_knows_its_truth(tmp_path):
    assert isinstance(WHOLE, GroundTruth)
    assert WHOLE.features().shape == (40, 10)
    torch.testing.assert_close(WHOLE.features().norm(dim=1), torch.ones(40), rtol=1e-6, atol=1e-6)
    assert WHOLE.rows_available("activations", "train") is None
    unready = Synthetic(SyntheticConfig())
    for ask in (unready.features, unready.probabilities, lambda: unready.codes("train", 0, 5)):
        with pytest.raises(RuntimeError, match="not prepared"):
            ask()


@pytest.mark.parametrize("p", [0.001, 0.05, 0.4, 0.9])
def test_features_fire_as_independent_coins(p):
    # binomial tests: a wrong thinning of the Poisson points (-p instead of -log(1 - p)) is off by p / 2
    backbone = constant(p)
    fires = backbone.codes("train", 0, ROWS).to_dense() != 0
    total = int(fires.sum())
    assert stats.binomtest(total, ROWS * 40, p).pvalue > 1e-4
    each = fires.sum(0).numpy()
    variance = ((each - ROWS * p) ** 2).mean() / (ROWS * p * (1 - p))  # chi-squared over 40 features, by 40
    assert stats.chi2(40).ppf(1e-4) / 40 < variance < stats.chi2(40).ppf(1 - 1e-4) / 40
    pairs = int((fires[:, 0::2] & fires[:, 1::2]).sum())
    assert stats.binomtest(pairs, ROWS * 20, p * p).pvalue > 1e-4
    neighbours = int((fires[:-1:2] & fires[1::2]).sum())
    assert stats.binomtest(neighbours, (ROWS // 2) * 40, p * p).pvalue > 1e-4


def test_each_feature_fires_with_its_own_probability():
    backbone = make(n_features=60, probability={"type": "log_uniform", "low": 0.001, "high": 0.5})
    each = (backbone.codes("train", 0, ROWS).to_dense() != 0).sum(0).tolist()
    chances = backbone.probabilities().tolist()
    values = [stats.binomtest(count, ROWS, chance).pvalue for count, chance in zip(each, chances, strict=True)]
    assert min(values) > 1e-4 / 60


@pytest.mark.parametrize("sigma", [0.25, 0.5])
def test_magnitudes_are_log_normal(sigma):
    values = constant(0.2, lognormal_sigma=sigma).codes("train", 0, ROWS).values.double()
    assert stats.kstest(values.log().numpy()[:50_000], stats.norm(0, sigma).cdf).pvalue > 1e-4
    mean, square = math.exp(sigma**2 / 2), math.exp(2 * sigma**2)
    error = math.sqrt((square - mean**2) / len(values))
    assert abs(float(values.mean()) - mean) < 5 * error
    if sigma == 0.25:  # the paper's setting
        assert (mean, square) == (pytest.approx(1.032, abs=5e-4), pytest.approx(1.133, abs=5e-4))


def test_magnitudes_without_spread_are_one():
    assert set(constant(0.1, lognormal_sigma=0.0).codes("train", 0, 100).values.tolist()) == {1.0}


def test_magnitudes_are_drawn_for_every_row():
    codes = constant(0.3).codes("train", 0, 200).to_dense()
    values = codes[codes > 0]
    assert values.unique().numel() == values.numel()


def test_probabilities_are_uniform_in_their_logarithm():
    low, high = 10**-5.5, 10**-1.2
    config = {"n_features": 3200, "d_in": 4, "probability": {"type": "log_uniform", "low": low, "high": high}}
    chances = make(**config).probabilities().double()
    law = stats.uniform(math.log(low), math.log(high / low))
    assert stats.kstest(chances.log().numpy(), law.cdf).pvalue > 1e-4
    assert not torch.equal(chances.sort().values, chances)


def test_the_expected_l0_is_recorded():
    assert SyntheticConfig().probability.low == pytest.approx(10**-5.5)
    paper = Synthetic(SyntheticConfig())
    assert paper.describe().facts["expected_l0"] == pytest.approx(20.39, abs=0.005)
    paper.prepare(FakeContext(None))
    assert float(paper.probabilities().sum()) == pytest.approx(20.39, abs=5 * 0.72)
    assert constant(0.05).describe().facts == {"n_features": 40, "expected_l0": 2.0}
    flat = make(probability={"type": "log_uniform", "low": 0.1, "high": 0.1})
    assert flat.describe().facts["expected_l0"] == 4.0
    assert float(flat.probabilities().sum()) == pytest.approx(4.0)


def test_directions_of_features_are_uniform():
    features = make(n_features=4000, d_in=8).features().double()
    law = stats.beta(3.5, 3.5, loc=-1, scale=2)
    assert stats.kstest(features[:, 0].numpy(), law.cdf).pvalue > 1e-4
    assert stats.kstest((features[:2000] * features[2000:]).sum(1).numpy(), law.cdf).pvalue > 1e-4


def test_a_block_without_a_single_firing_is_all_zeros():
    silent = constant(1e-9, n_features=2)
    assert torch.equal(rows_of(silent, 0, 100), torch.zeros(100, 10))
    assert silent.codes("train", 0, 100).l0().tolist() == [0.0] * 100


@pytest.mark.parametrize(
    "keys",
    [
        {"d_in": 0},
        {"n_features": 0},
        {"lognormal_sigma": -0.1},
        {"k": 3},
        {"probability": {"type": "constant", "p": 0.0}},
        {"probability": {"type": "constant", "p": 1.0}},
        {"probability": {"type": "log_uniform", "low": 0.2, "high": 0.1}},
        {"probability": {"type": "log_uniform", "low": 0.2}},
        {"probability": {"type": "zipf"}},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(keys):
    with pytest.raises(ValidationError):
        SyntheticConfig.model_validate(keys)


def test_describing_draws_nothing(monkeypatch):
    monkeypatch.setattr(synthetic.torch, "randn", None)
    description = Synthetic(SyntheticConfig(d_in=7)).describe()
    assert (description.sites, description.modality, description.regenerates) == ({"activations": 7}, "synthetic", True)
    assert description.memory_bytes > 0
    assert description.seconds_per_row > 0
