"""The constraints: caps, frozen encoders, untrained SAEs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from saebench_core.geometry import project_on_band
from saebench_core.rules import BatchTopK, JumpReLU, ReLU, TopK
from saebench_core.training.calibration import quantile_threshold
from tests.helpers.training import (
    D_SAE,
    MemoryReader,
    activations,
    bits,
    build,
    generator,
    make_trainee,
    normal,
    same_bits,
    settings as training_settings,
    stream,
)

unit = torch.nn.functional.normalize
TAUS = [-0.5, 0.0, 0.3, 0.8, 0.99]


def projected(rows, anchors, tau):
    out = rows.clone()
    project_on_band(out, anchors, tau)
    return out


def cosines(rows, anchors):
    return torch.nn.functional.cosine_similarity(rows.double(), anchors.double(), dim=1)


def cloud(n=200, d=6, seed=0, spread=1.0):
    anchors = unit(normal(n, d, seed=seed), dim=1)
    rows = anchors + spread * torch.linspace(0.01, 1, n)[:, None] * normal(n, d, seed=seed + 1)
    return rows * (0.1 + 3 * torch.rand(n, 1, generator=generator(seed))), anchors


@pytest.mark.parametrize("tau", TAUS)
def test_rows_inside_their_cap_keep_their_bits(tau):
    rows, anchors = cloud()
    out = projected(rows, anchors, tau)
    inside = cosines(rows, anchors) > tau + 1e-6
    outside = cosines(rows, anchors) < tau - 1e-6
    assert torch.equal(out[inside], rows[inside])
    assert int(inside.sum()) > 0
    assert tau == -0.5 or int(outside.sum()) > 0
    assert bool((out[outside] != rows[outside]).any(1).all())


@pytest.mark.parametrize("tau", TAUS)
def test_projection_lands_on_the_bound_and_keeps_norms(tau):
    rows, anchors = cloud(spread=5.0)
    out = projected(rows, anchors, tau)
    outside = cosines(rows, anchors) < tau - 1e-6
    assert int(outside.sum()) > 10
    assert float((cosines(out, anchors)[outside] - tau).abs().max()) <= 1e-6
    torch.testing.assert_close(out.norm(dim=1), rows.norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tau", TAUS)
def test_projection_is_idempotent(tau):
    rows, anchors = cloud(spread=5.0)
    once = projected(rows, anchors, tau)
    moved = (projected(once, anchors, tau) - once).norm(dim=1) / once.norm(dim=1)
    assert float(moved.max()) <= 1e-6


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(TAUS), st.integers(2, 4), st.integers(0, 10**6))
def test_projection_is_the_nearest_point_of_the_cap(tau, d, seed):
    anchor, row = unit(normal(1, d, seed=seed), dim=1), unit(normal(1, d, seed=seed + 1), dim=1)
    out = projected(row, anchor, tau).double()
    anchor, row = unit(anchor.double(), dim=1), row.double()
    samples = unit(normal(20_000, d, seed=seed + 2, dtype=torch.float64), dim=1)
    aside = unit(samples - (samples @ anchor.T) * anchor, dim=1)
    edge = tau * anchor + math.sqrt(1 - tau**2) * aside
    cap = torch.cat([samples[(samples @ anchor.T)[:, 0] >= tau], edge])
    best = float((cap @ row.T).max())
    found = float((out @ row.T)[0, 0])
    assert found >= best - 1e-6
    assert found <= best + {2: 1e-5, 3: 1e-3, 4: 0.03}[d]  # as dense as the samples are


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.8])
def test_antiparallel_rows_land_on_the_bound(tau):
    anchors = unit(normal(300, 2304), dim=1)
    anchors[0] = torch.eye(2304)[0]
    rows = -2.0 * anchors
    rows[100:200] *= 1 + 1e-7 * normal(100, 2304, seed=1)  # as rounding leaves them
    out = projected(rows, anchors, tau)
    assert float((cosines(out, anchors) - tau).abs().max()) <= 1e-6
    torch.testing.assert_close(out.norm(dim=1), rows.norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0])
def test_rounding_stays_below_a_millionth_at_the_papers_width(spread):
    anchors = unit(normal(400, 2304), dim=1)
    rows = unit(anchors + spread * normal(400, 2304, seed=1), dim=1)
    out = projected(rows, anchors, 0.8)
    assert float(cosines(out, anchors).min()) >= 0.8 - 1e-6
    pushed = cosines(rows, anchors) < 0.8 - 1e-6
    assert float((cosines(out, anchors)[pushed] - 0.8).abs().max() if pushed.any() else 0) <= 1e-6


def trained_for(steps, constraint, each=None, lr=0.02, **on_constraint):
    x, training = activations(), training_settings(steps, lr=lr)
    trainee = make_trainee("topk", constraint, x, training=training, **on_constraint)
    for number, batch in enumerate(stream(x, training).batches()):
        trainee.step(batch, number)
        if each is not None:
            each(trainee)
    return trainee


def test_every_step_ends_within_the_caps():
    lowest = []

    def look(trainee):
        lowest.append(float(cosines(trainee.sae.w_dec.detach(), trainee.start.w_dec).min()))

    trainee = trained_for(60, "soft_frozen_decoder", each=look, lr=0.004, tau=0.95)
    assert min(lowest) == pytest.approx(0.95, abs=1e-6)
    free = trained_for(60, "trained")
    assert float(cosines(free.sae.w_dec.detach(), free.start.w_dec).min()) < 0.8
    share = trainee.constraint.certify(trainee.sae, trainee.start)["at_bound_share"]
    at_bound = (cosines(trainee.sae.w_dec.detach(), trainee.start.w_dec) < 0.95 + 1e-5).double().mean()
    assert share == pytest.approx(float(at_bound), abs=1.5 / D_SAE)
    assert 0 < share < 1


def test_tau_of_minus_one_is_full_training_to_the_bit():
    assert same_bits(bits(trained_for(50, "soft_frozen_decoder", tau=-1.0)), bits(trained_for(50, "trained")))


def test_tau_of_one_keeps_the_directions_of_a_frozen_decoder():
    held = trained_for(50, "soft_frozen_decoder", tau=1.0)
    frozen = trained_for(50, "frozen_decoder")
    assert float(cosines(held.sae.w_dec.detach(), frozen.sae.w_dec).min()) >= 1 - 1e-6
    assert held.constraint.certify(held.sae, held.start)["at_bound_share"] == 1.0


def test_nothing_lies_on_the_bound_at_the_start():
    trainee = make_trainee("topk", "soft_frozen_decoder")
    assert trainee.constraint.certify(trainee.sae, trainee.start) == {"at_bound_share": 0.0}


@pytest.mark.parametrize("tau", [-1.1, 1.1])
def test_impossible_caps_are_refused(tau):
    with pytest.raises(ValidationError):
        build("constraint", "soft_frozen_decoder", tau=tau)


@pytest.mark.parametrize(
    ("architecture", "centring"), [("relu", "fixed"), ("topk", "fixed"), ("batch_topk", "fixed"), ("jumprelu", "none")]
)
def test_the_centre_of_a_frozen_encoder_does_not_move(architecture, centring):
    x, training = activations(), training_settings(30, lr=0.02)
    trainee = make_trainee(architecture, "frozen_encoder", x, training=training)
    assert trainee.sae.centring == centring
    before, b_dec = trainee.sae.centre().clone(), trainee.sae.tensors["b_dec"].detach().clone()
    pre = trainee.sae.pre_activations(x) - trainee.sae.tensors["b_enc"].detach()
    for number, batch in enumerate(stream(x, training).batches()):
        trainee.step(batch, number)
    assert not torch.equal(b_dec, trainee.sae.tensors["b_dec"].detach())
    assert torch.equal(trainee.sae.centre().detach(), before)
    after = trainee.sae.pre_activations(x) - trainee.sae.tensors["b_enc"].detach()
    torch.testing.assert_close(pre, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "default"), [("relu", True), ("topk", False), ("batch_topk", False), ("jumprelu", False)]
)
def test_the_bias_of_a_frozen_encoder_is_trained_where_it_is_the_threshold(architecture, default):
    def frozen(**keys):
        return make_trainee(architecture, "frozen_encoder", **keys).frozen

    assert frozen() == ({"W_enc"} if default else {"W_enc", "b_enc"})
    assert frozen(train_b_enc=True) == {"W_enc"}
    assert frozen(train_b_enc=False) == {"W_enc", "b_enc"}


@pytest.mark.parametrize("norm", ["unit", "free"])
def test_decoder_rows_of_a_frozen_encoder_are_unit_or_free(norm):
    norms = trained_for(30, "frozen_encoder", decoder_norm=norm).sae.w_dec.detach().norm(dim=1)
    if norm == "unit":
        torch.testing.assert_close(norms, torch.ones(D_SAE), rtol=1e-6, atol=1e-6)
    else:
        assert float((norms - 1).abs().max()) > 0.05


RULES = {"relu": ReLU, "topk": TopK, "batch_topk": BatchTopK, "jumprelu": JumpReLU}
CALIBRATED = {"relu": BatchTopK, "topk": TopK, "batch_topk": BatchTopK, "jumprelu": BatchTopK}
AS_DRAWN = {"relu": ReLU, "topk": TopK, "batch_topk": ReLU, "jumprelu": JumpReLU}


@pytest.mark.parametrize("architecture", RULES)
def test_untrained_saes_meet_the_target_or_stay_as_drawn(architecture):
    x = activations(2000)
    drawn = make_trainee(architecture, "untrained", x, calibrate="none")
    assert type(drawn.recipe.rule) is AS_DRAWN[architecture]
    assert torch.equal(drawn.sae.w_enc, drawn.start.w_enc)
    met = make_trainee(architecture, "untrained", x)
    assert type(met.recipe.rule) is CALIBRATED[architecture]
    sae, calibrated = met.sae.folded(1.0), met.recipe.rule.calibrated()
    if calibrated is not None:
        sae.tensors["threshold"].fill_(quantile_threshold(sae, MemoryReader(x), calibrated.l0))
    assert float(sae.encode(x).l0().mean()) == pytest.approx(4.0, rel=1e-3)
    if architecture in ("relu", "batch_topk"):
        assert float(drawn.sae.encode(x).l0().mean()) > 8  # about half of the latents fire


@pytest.mark.parametrize("calibrate", ["l0", "none"])
@pytest.mark.parametrize("architecture", RULES)
def test_untrained_saes_take_no_step(architecture, calibrate):
    trainee = make_trainee(architecture, "untrained", calibrate=calibrate)
    before = bits(trainee)
    trainee.step(activations(64), 0)
    assert same_bits(before, bits(trainee))
    assert trainee.frozen >= {"W_enc", "W_dec", "b_enc", "b_dec"}


def test_inits_by_default():
    inits = {name: build("constraint", name).config.init for name in ("trained", "frozen_encoder", "untrained")}
    assert inits == {"trained": "iso", "frozen_encoder": "iso", "untrained": "kaiming"}


def test_what_constraints_randomise():
    parts = {
        name: set(build("constraint", name).randomises)
        for name in ("trained", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder", "untrained")
    }
    assert parts == {
        "trained": set(),
        "frozen_decoder": {"decoder"},
        "soft_frozen_decoder": {"decoder"},
        "frozen_encoder": {"encoder"},
        "untrained": {"encoder", "decoder"},
    }
