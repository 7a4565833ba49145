"""Training settings, the L0 controller and the calibrated threshold."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from saebench_core.rules import BatchTopK
from saebench_core.training import calibration
from saebench_core.training.calibration import quantile_threshold
from saebench_core.training.controllers import L0Controller
from saebench_core.training.settings import PRESETS, TrainingSettings
from tests.helpers.training import MemoryReader, activations, make_trainee, random_sae, settings, stream


def parse(**keys):
    return TrainingSettings.model_validate(keys)


def test_the_paper_preset():
    paper = parse(preset="paper")
    assert (paper.tokens, paper.batch_size, paper.lr, paper.weight_decay) == (500_000_000, 4096, 2e-4, 0.01)
    assert (paper.total_steps, paper.warmup, paper.sparsity_warmup) == (122_070, 1000, 5000)
    assert (paper.clip_norm, paper.decay_fraction, paper.normalise) == (1.0, 0.2, "mean_square")
    assert paper.dead_window == 122_070 * 4096 // 50


def test_the_dictionary_learning_preset():
    demo = parse(preset="dictionary_learning")
    assert (demo.batch_size, demo.lr, demo.weight_decay, demo.warmup, demo.sparsity_warmup) == (
        2048,
        3e-4,
        0,
        1000,
        5000,
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_keys_of_ones_own_win_over_a_preset(preset):
    own = parse(preset=preset, steps=10_000, lr=1.0)
    assert (own.total_steps, own.tokens, own.lr, own.batch_size) == (10_000, None, 1.0, PRESETS[preset]["batch_size"])
    assert parse(preset=preset, tokens=9_000_000).total_rows <= 9_000_000


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of `steps` and `tokens`"),
        ({"steps": 5, "tokens": 10**6}, "exactly one of `steps` and `tokens`"),
        ({"tokens": 100, "batch_size": 101}, "less than one batch"),
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps 10 must be below the 10 steps"),
        ({"steps": 10, "betas": (0.9, 1.0)}, "betas must be in"),
        ({"steps": 0}, "greater than 0"),
        ({"steps": 10, "k": 3}, "Extra inputs"),
        ({"preset": "papre", "steps": 3}, "paper"),
    ],
)
def test_impossible_settings_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        parse(**keys)


def test_defaults_scale_with_the_budget():
    small = parse(steps=200, batch_size=100)
    assert (small.warmup, small.sparsity_warmup, small.dead_window) == (10, 10, 400)
    large = parse(steps=10**6, batch_size=4096)
    assert (large.warmup, large.sparsity_warmup, large.dead_window) == (1000, 5000, 10_000_000)
    assert parse(tokens=1000, batch_size=300).total_rows == 900
    assert parse(steps=1).dead_window >= 1


def test_a_gain_scales_the_encoder_alone_and_leaves_ids_as_they_were():
    plain, soft = parse(steps=10), parse(steps=10, encoder_gain=0.25)
    assert "encoder_gain" not in plain.model_dump()
    assert soft.model_dump()["encoder_gain"] == 0.25
    usual, scaled = (make_trainee("topk", "trained", training=training).sae for training in (plain, soft))
    assert torch.equal(scaled.w_enc, 0.25 * usual.w_enc)
    assert torch.equal(scaled.w_dec, usual.w_dec)
    for held in ("untrained", "frozen_encoder"):  # as drawn
        assert torch.equal(*(make_trainee("topk", held, training=training).sae.w_enc for training in (plain, soft)))


def test_a_gain_holds_for_what_a_constraint_puts_back():
    trainee = make_trainee("topk", "partial_freeze", training=settings(10, encoder_gain=0.25), part="encoder")
    before = trainee.sae.w_enc.detach().clone()
    with torch.no_grad():
        trainee.constraint.project(trainee.sae, trainee.start)
    assert torch.equal(trainee.sae.w_enc, before)


def test_learning_rate_warms_up_stays_and_decays():
    schedule = parse(steps=100, warmup_steps=4, decay_fraction=0.2)
    factors = [schedule.lr_factor(step) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:81] == [1.0] * 77
    assert factors[80:] == pytest.approx([1 - step / 20 for step in range(20)])
    assert min(factors) > 0


def test_learning_rate_without_warm_up_or_decay_is_constant():
    schedule = parse(steps=50, warmup_steps=0, decay_fraction=0.0)
    assert {schedule.lr_factor(step) for step in range(50)} == {1.0}


def test_learning_rate_where_warm_up_meets_decay():
    schedule = parse(steps=10, warmup_steps=9, decay_fraction=1.0)
    assert [schedule.lr_factor(step) for step in range(10)] == pytest.approx(
        [min((step + 1) / 10, (10 - step) / 10) for step in range(10)]
    )


def test_sparsity_warms_up_linearly():
    schedule = parse(steps=100, sparsity_warmup_steps=4)
    assert [schedule.sparsity_factor(step) for step in (0, 1, 3, 4, 99)] == [0.0, 0.25, 0.75, 1.0, 1.0]
    assert parse(steps=100, sparsity_warmup_steps=0).sparsity_factor(0) == 1.0


@pytest.mark.parametrize("gain", [0.2, 5.0])
@pytest.mark.parametrize(
    ("steps", "lag", "miss"),
    [(1000, 10, 0.03), (2000, 200, 0.02), (5000, 50, 0.02), (5000, 800, 0.02), (20_000, 50, 0.01)],
)
def test_the_controller_steers_a_slow_plant_to_its_target(steps, lag, miss, gain):
    controller, l0, path = L0Controller(20.0, steps), 20.0 * gain, []
    for step in range(steps):
        l0 += (20.0 * gain / controller.multiplier**0.7 - l0) / lag
        controller.update(step, l0)
        path.append(l0)
    assert l0 == pytest.approx(20.0, rel=miss)
    sides = [value > 20.0 for value in path if abs(value / 20.0 - 1) > 0.02]
    assert sum(one != other for one, other in itertools.pairwise(sides)) <= 1  # it does not swing
    assert controller.multiplier == pytest.approx(gain ** (1 / 0.7), rel=0.05)


def test_the_controller_is_bounded_and_rests_at_the_end():
    high, low = L0Controller(20.0, 5000), L0Controller(20.0, 5000)
    for step in range(4500):
        high.update(step, 500.0)
        low.update(step, 0.0)
    assert (high.multiplier, low.multiplier) == (100.0, 0.01)
    resting = L0Controller(20.0, 100, multiplier=2.0)
    for step in range(95, 100):
        resting.update(step, 500.0)
    assert resting.multiplier == 2.0


@pytest.mark.parametrize("l0", [3.0, 8.0])
def test_a_relu_sae_is_steered_to_its_target(l0):
    x, training = activations(12_800), settings(1000, lr=2e-3)
    trainee = make_trainee("relu", "trained", x, training=training, l0=l0)
    for number, batch in enumerate(stream(x, training).batches()):
        trainee.step(batch, number)
    found = float(trainee.sae.encode(x).l0().mean())
    assert found == pytest.approx(l0, rel=0.05)


def wanted_threshold(sae, rows, l0):
    pre = sae.pre_activations(rows)
    positive = pre[pre > 0].sort(descending=True).values
    keep = round(l0 * rows.shape[0])
    return float(positive[keep]) if keep < positive.numel() else 0.0


@pytest.mark.parametrize("collect", [1 << 22, 1000, 50, 1], ids=str)
@pytest.mark.parametrize("l0", [0.5, 3.0, 7.7, 12.0, 23.9])
@pytest.mark.parametrize("rows", [1, 37, 640])
def test_the_threshold_is_the_exact_order_statistic(rows, l0, collect, monkeypatch):
    monkeypatch.setattr(calibration, "_COLLECT", collect)
    monkeypatch.setattr(calibration, "_BATCH", 100)
    sae, x = random_sae(BatchTopK(l0)), activations(rows)
    found = quantile_threshold(sae, MemoryReader(x), l0)
    assert found == wanted_threshold(sae, x, l0)
    sae.tensors["threshold"].fill_(found)
    above = int((sae.encode(x).values > 0).sum())
    assert above == min(round(l0 * rows), int((sae.pre_activations(x) > 0).sum()))


@pytest.mark.parametrize("bins", [2, 3, 4096])
def test_the_threshold_is_exact_for_any_bins(bins, monkeypatch):
    monkeypatch.setattr(calibration, "_BINS", max(bins, 4))
    monkeypatch.setattr(calibration, "_COLLECT", 20)
    sae, x = random_sae(BatchTopK(3.0)), activations(300)
    assert quantile_threshold(sae, MemoryReader(x), 3.0) == wanted_threshold(sae, x, 3.0)


def test_the_threshold_of_scaled_rows():
    sae, x = random_sae(BatchTopK(3.0)), activations(200)
    assert quantile_threshold(sae, MemoryReader(4.0 * x), 3.0, scale=4.0) == wanted_threshold(sae, x, 3.0)


def test_the_threshold_with_outliers_and_ties(monkeypatch):
    monkeypatch.setattr(calibration, "_COLLECT", 5)
    sae, x = random_sae(BatchTopK(3.0)), activations(200)
    x[0] *= 1e6
    assert quantile_threshold(sae, MemoryReader(x), 3.0) == wanted_threshold(sae, x, 3.0)
    same = x[1:2].repeat(50, 1)
    found = quantile_threshold(sae, MemoryReader(same), 3.0)
    assert math.isclose(found, wanted_threshold(sae, same, 3.0), rel_tol=1e-6)


def test_no_positive_pre_activation_gives_zero():
    sae = random_sae(BatchTopK(3.0))
    sae.tensors["b_enc"].fill_(-100.0)
    assert quantile_threshold(sae, MemoryReader(activations(20)), 3.0) == 0.0


def test_hashes_and_generators_follow_every_part():
    from saebench_core.randomness import derive_seed, named_generator, tensor_sha256

    assert derive_seed(1, "a") == derive_seed(1, "a")
    assert (
        len({derive_seed(1, "a"), derive_seed(2, "a"), derive_seed(1, "b"), derive_seed("1a"), derive_seed(1, "a", 0)})
        == 5
    )
    assert torch.equal(*(torch.rand(5, generator=named_generator(3, "x")) for _ in range(2)))
    one = torch.arange(6.0).reshape(2, 3)
    assert tensor_sha256(one) == tensor_sha256(one.T.contiguous().T)
    others = [one.reshape(3, 2), one.double(), one + 1, one.T]
    assert len({tensor_sha256(tensor) for tensor in [one, *others]}) == 5
    assert tensor_sha256(torch.zeros(0)) != tensor_sha256(torch.zeros(1))
    assert tensor_sha256(torch.tensor(1.0)) == tensor_sha256(torch.tensor(1.0).clone())
