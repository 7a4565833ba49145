"""Options of the synthetic backbone: frequencies, magnitudes, directions, bias and noise follow their laws."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.backbones._directions import Orthogonalisation, pushed_apart, random_directions
from saebench_plugins.backbones._firing import fire_independently
from saebench_plugins.backbones.synthetic import Synthetic, SyntheticConfig
from scipy import stats

from tests.helpers.contexts import FakeContext
from tests.helpers.training import generator

ROWS = 3 * 4096
SYNTH_SAE_BENCH = {"type": "zipf", "low": 5e-4, "high": 0.4, "exponent": 0.5}
NORMAL = {"type": "rectified_normal", "first_mean": 5.0, "last_mean": 4.0, "std_mean": 0.5, "std_spread": 0.5}


def make(**keys):
    backbone = Synthetic(SyntheticConfig.model_validate({"d_in": 10, "n_features": 40} | keys))
    backbone.prepare(FakeContext(None))
    return backbone


def rows_of(backbone, start=0, count=ROWS):
    return torch.cat([batch.inputs for batch in backbone.stream("activations", "train", start, count)])


def test_zipf_probabilities_of_synth_sae_bench():
    p = make(n_features=16_384, d_in=2, probability=SYNTH_SAE_BENCH).probabilities().double()
    assert float(p[0]) == pytest.approx(0.4) and float(p[-1]) == pytest.approx(5e-4)
    assert float(p.sum()) == pytest.approx(59.1, abs=0.05)
    assert float(p.median()) == pytest.approx(0.0018, abs=5e-5)
    assert bool((p.diff() < 0).all())


def test_zipf_by_hand():
    p = make(n_features=4, probability={"type": "zipf", "low": 0.1, "high": 0.4, "exponent": 1.0}).probabilities()
    assert p.tolist() == pytest.approx(
        [0.4, 0.1 + 0.3 * (1 / 2 - 1 / 4) / 0.75, 0.1 + 0.3 * (1 / 3 - 1 / 4) / 0.75, 0.1]
    )
    flat = make(n_features=4, probability={"type": "zipf", "low": 0.1, "high": 0.4, "exponent": 0.0})
    assert flat.probabilities().tolist() == pytest.approx([0.4] * 4)


def test_linear_probabilities_by_hand():
    keys = {"n_features": 4, "probability": {"type": "linear", "low": 0.1, "high": 0.4}}
    assert make(**keys).probabilities().tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("kind", ["zipf", "linear", "log_uniform"])
@pytest.mark.parametrize("count", [1, 40])
def test_the_expected_l0_is_the_sum_of_probabilities(kind, count):
    backbone = make(n_features=count, probability={"type": kind, "low": 0.05, "high": 0.2})
    total = float(backbone.probabilities().double().sum())
    told = backbone.describe().facts["expected_l0"]
    spread = 0.2 * math.sqrt(count) if kind == "log_uniform" else 1e-3
    assert told == pytest.approx(total, abs=spread)


@pytest.mark.parametrize("kind", ["zipf", "linear", "log_uniform"])
def test_bounds_in_the_wrong_order_are_refused(kind):
    with pytest.raises(ValidationError, match=r"low 0\.5 is above high 0\.1"):
        make(probability={"type": kind, "low": 0.5, "high": 0.1})


@pytest.mark.parametrize("probability", [SYNTH_SAE_BENCH, {"type": "linear", "low": 0.01, "high": 0.3}])
def test_features_fire_as_often_as_they_should(probability):
    backbone = make(probability=probability)
    counts = (backbone.codes("train", 0, ROWS).to_dense() > 0).sum(0).double()
    p = backbone.probabilities().double()
    assert bool(((counts - ROWS * p).abs() < 5 * (ROWS * p * (1 - p)).sqrt() + 1).all())


def test_magnitudes_are_rectified_normals():
    backbone = make(magnitude=NORMAL, probability={"type": "constant", "p": 0.3})
    codes = backbone.codes("train", 0, ROWS)
    assert float(codes.values.min()) > 0
    strength = backbone._drawing.magnitudes
    assert strength.mean.tolist() == pytest.approx(torch.linspace(5, 4, 40).tolist())
    for feature in (0, 17, 39):
        values = codes.values[codes.selection.cols == feature].double()
        mean, std = float(strength.mean[feature]), float(strength.std[feature])
        assert stats.kstest(values.numpy(), "norm", args=(mean, std)).pvalue > 1e-4


def test_what_is_rectified_away_does_not_fire():
    weak = NORMAL | {"first_mean": 0.5, "last_mean": 0.5, "std_mean": 0.5, "std_spread": 0.0}
    backbone = make(magnitude=weak, probability={"type": "constant", "p": 0.2})
    codes = backbone.codes("train", 0, ROWS)
    share = codes.values.numel() / (ROWS * 40)
    expected = 0.2 * stats.norm.cdf(1.0)
    assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / (ROWS * 40)))
    torch.testing.assert_close(rows_of(backbone), codes.to_dense() @ backbone.features(), rtol=1e-5, atol=1e-5)


def test_bias_and_noise_are_added():
    plain, moved = make(), make(bias_norm=2.5, noise=0.3)
    assert torch.equal(plain.codes("train", 0, 50).to_dense(), moved.codes("train", 0, 50).to_dense())
    added = (rows_of(moved) - rows_of(plain)).double()
    assert float(added.mean(0).norm()) == pytest.approx(2.5, abs=5 * 0.3 * math.sqrt(10 / ROWS))
    noise = (added - moved._bias).flatten()
    assert stats.kstest(noise.numpy(), "norm", args=(0, 0.3)).pvalue > 1e-4


@pytest.mark.parametrize(("start", "count"), [(0, 1), (4095, 2), (4000, 5000), (8192, 4096), (1, 12_000)])
def test_rows_do_not_depend_on_the_cut(start, count):
    backbone = make(bias_norm=1.0, noise=0.3, magnitude=NORMAL)
    assert torch.equal(rows_of(backbone, start, count), rows_of(backbone)[start : start + count])


def test_directions_are_pushed_apart():
    before = random_directions(60, 40, generator(0))
    after = pushed_apart(before, Orthogonalisation(steps=300, lr=3e-3))
    assert torch.allclose(after.norm(dim=1), torch.ones(60))
    off = [(each @ each.T - torch.eye(60)).square().sum() for each in (before, after)]
    assert float(off[1]) < 0.75 * float(off[0])
    assert float(off[1]) > 60**2 / 40 - 60 - 1e-3, "the bound of Welch"


def test_the_gradient_is_that_of_the_loss():
    """One step of Adam has the sign of the gradient, so directions after a step tell it."""
    start = random_directions(7, 4, generator(0)) * 1.0
    wanted = start.clone().requires_grad_()
    table = wanted @ wanted.T
    squares = table.diagonal()
    loss = (table.square().sum() - squares.square().sum()) + 7 * (squares - 1).square().sum()
    loss.backward()
    optimiser = torch.optim.Adam([wanted], lr=1e-2)
    optimiser.step()
    moved = pushed_apart(start, Orthogonalisation(steps=1, lr=1e-2))
    torch.testing.assert_close(moved, torch.nn.functional.normalize(wanted.detach(), dim=1), rtol=1e-4, atol=1e-5)


def test_a_world_with_options_is_another_world():
    worlds = [make(), make(orthogonalise={"steps": 5}), make(bias_norm=1.0), make(noise=0.1), make(magnitude=NORMAL)]
    assert len({rows_of(world, 0, 100).double().sum().item() for world in worlds}) == 5


def test_features_that_fire_in_most_rows_do_so_and_leave_the_others_alone():
    rare = torch.full((50,), 0.02, dtype=torch.float64)
    mixed = torch.cat([rare, torch.tensor([0.6, 0.999999999, 0.9], dtype=torch.float64)])
    found = fire_independently(mixed, 4096, torch.Generator().manual_seed(0))
    counts = torch.bincount(found.cols, minlength=53)
    assert counts[51] == 4096
    for feature, p in ((50, 0.6), (52, 0.9)):
        assert abs(int(counts[feature]) - 4096 * p) < 5 * (4096 * p * (1 - p)) ** 0.5
    assert abs(int(counts[:50].sum()) - 4096) < 5 * 4096**0.5
    assert found.bounds[0] == 0 and found.bounds[-1] == found.cols.numel()
    for first, last in zip(found.bounds[:-1], found.bounds[1:], strict=True):
        own = found.cols[first:last]
        assert bool((own.diff() > 0).all())


def test_two_laws_of_magnitudes_are_refused():
    with pytest.raises(ValidationError, match="give it or lognormal_sigma"):
        make(magnitude=NORMAL, lognormal_sigma=0.5)
