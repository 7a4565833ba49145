"""One SAE in training: the step's recipe, what is trained where, and what stays bit-identical."""

from __future__ import annotations

import pytest
import torch

from saebench_core.objectives import Objective, Term, WeightedTerm
from saebench_core.randomness import tensor_sha256
from saebench_core.training.certificate import Origin, certify, frozen_hashes
from saebench_core.training.trainee import TrainingDivergedError
from tests.helpers.training import (
    BATCH,
    D_SAE,
    L0,
    activations,
    base_draw,
    bits,
    make_trainee,
    same_bits,
    settings,
    stream,
    trainable_names,
)

ARCHITECTURES, CONSTRAINTS = trainable_names("architecture"), trainable_names("constraint")
X = activations()
JUMP = {"bandwidth": 0.05, "threshold": 0.05}

DEFAULT = {"W_enc", "b_enc", "W_dec", "b_dec"}
TRAINED = {
    ("relu", "trained"): DEFAULT,
    ("relu", "frozen_decoder"): DEFAULT - {"W_dec"},
    ("relu", "soft_frozen_decoder"): DEFAULT,
    ("relu", "frozen_encoder"): {"b_enc", "W_dec", "b_dec"},
    ("topk", "trained"): DEFAULT,
    ("topk", "frozen_decoder"): DEFAULT - {"W_dec"},
    ("topk", "soft_frozen_decoder"): DEFAULT,
    ("topk", "frozen_encoder"): {"W_dec", "b_dec"},
    ("batch_topk", "trained"): DEFAULT,
    ("batch_topk", "frozen_decoder"): DEFAULT - {"W_dec"},
    ("batch_topk", "soft_frozen_decoder"): DEFAULT,
    ("batch_topk", "frozen_encoder"): {"W_dec", "b_dec"},
    ("jumprelu", "trained"): DEFAULT | {"threshold"},
    ("jumprelu", "frozen_decoder"): {"W_enc", "b_enc", "b_dec", "threshold"},
    ("jumprelu", "soft_frozen_decoder"): DEFAULT | {"threshold"},
    ("jumprelu", "frozen_encoder"): {"threshold", "W_dec", "b_dec"},
}


def batches(count, x=X):
    return list(stream(x, settings(count)).batches())


def optimised(trainee):
    """Names of the tensors that the optimiser holds."""
    if trainee._optimiser is None:
        return set()
    held = {tensor.data_ptr() for group in trainee._optimiser.param_groups for tensor in group["params"]}
    return {name for name, tensor in trainee.sae.tensors.items() if tensor.data_ptr() in held}


def test_the_catalog_holds_what_the_table_lists():
    assert {architecture for architecture, _ in TRAINED} <= set(ARCHITECTURES)
    assert {constraint for _, constraint in TRAINED} <= set(CONSTRAINTS)


@pytest.mark.parametrize(("architecture", "constraint"), TRAINED)
def test_what_is_trained_where(architecture, constraint):
    trainee = make_trainee(architecture, constraint)
    assert optimised(trainee) == TRAINED[architecture, constraint]
    wanting = {name for name, tensor in trainee.sae.tensors.items() if tensor.requires_grad}
    assert wanting == TRAINED[architecture, constraint]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_tensors_keep_their_bits_and_the_others_move(architecture, constraint):
    training = settings(100, weight_decay=0.1, lr=1e-3)
    trainee = make_trainee(architecture, constraint, training=training)
    before, hashes = bits(trainee), frozen_hashes(trainee.sae, trainee.frozen)
    for number, batch in enumerate(batches(100)):
        trainee.step(batch, number)
    after = bits(trainee)
    estimated = {name for name, info in trainee.sae.info.items() if info.estimated}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = set(before) - trainee.frozen - estimated if trainee.constraint.trains else set()
    assert moved == expected == optimised(trainee)
    assert frozen_hashes(trainee.sae, trainee.frozen) == hashes
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())


def test_freezing_only_by_zero_gradients_would_not_do():
    trainee = make_trainee("relu", "trained", training=settings(10, weight_decay=0.1))
    before = bits(trainee)["W_enc"]
    trainee.sae.w_enc.grad = torch.zeros_like(trainee.sae.w_enc)
    for stepper in trainee._steppers:
        stepper.hand_over()
    trainee._optimiser.step()
    assert not torch.equal(trainee.sae.w_enc.detach(), before)


class SlowTrainee:
    """The step of a ReLU SAE, with dense products and a plain AdamW."""

    def __init__(self, trainee):
        self.trainee, self.held = trainee, trainee.settings
        self.tensors = bits(trainee)
        self.names = [name for name in self.tensors if name in optimised(trainee)]
        for name in self.names:
            self.tensors[name].requires_grad_()
        decayed = [self.tensors[name] for name in self.names if self.tensors[name].ndim == 2]
        plain = [self.tensors[name] for name in self.names if self.tensors[name].ndim == 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            groups, betas=self.held.betas, weight_decay=self.held.weight_decay, foreach=False
        )
        self.multiplier = 1.0
        self.tau = getattr(trainee.constraint.config, "tau", -1.0)

    def step(self, x, number):
        t = self.tensors
        centre = t.get("centre", t["b_dec"])
        codes = torch.relu((x - centre) @ t["W_enc"] + t["b_enc"])
        error = (x - codes @ t["W_dec"] - t["b_dec"]).square().sum() / len(x)
        penalty = 0.1 * self.held.sparsity_factor(number) * self.multiplier
        self.optimiser.zero_grad()
        (error + penalty * codes.sum() / len(x)).backward()
        if "W_dec" in self.names:
            rows = t["W_dec"].detach()
            t["W_dec"].grad -= (t["W_dec"].grad * rows).sum(1, keepdim=True) * rows
        norm = torch.sqrt(sum(t[name].grad.square().sum() for name in self.names))
        for name in self.names:
            t[name].grad *= min(1.0, self.held.clip_norm / (float(norm) + 1e-6))
        for group in self.optimiser.param_groups:
            group["lr"] = self.held.lr * self.held.lr_factor(number)
        self.optimiser.step()
        with torch.no_grad():
            if "W_dec" in self.names:
                t["W_dec"] /= t["W_dec"].norm(dim=1, keepdim=True)
            for row, anchor in zip(t["W_dec"], self.trainee.start.w_dec, strict=True):
                if row @ anchor < self.tau:
                    aside = row - (row @ anchor) * anchor
                    row.copy_(self.tau * anchor + (1 - self.tau**2) ** 0.5 * aside / aside.norm())
        self.multiplier = self.trainee.steering.l0.multiplier
        return float(norm)


@pytest.mark.parametrize("constraint", ["trained", "frozen_decoder", "frozen_encoder", "soft_frozen_decoder"])
def test_steps_equal_a_slow_reference(constraint):
    training = settings(12, lr=0.02, warmup_steps=3, clip_norm=0.5, weight_decay=0.2, sparsity_warmup_steps=4)
    further = {"tau": 0.99} if constraint == "soft_frozen_decoder" else {}
    trainee = make_trainee("relu", constraint, training=training, **further)
    slow = SlowTrainee(trainee)
    clipped = 0
    for number, batch in enumerate(batches(12)):
        trainee.step(batch, number)
        norm = slow.step(batch, number)
        clipped += norm > training.clip_norm
        assert trainee.report.grad_norm == pytest.approx(norm, rel=1e-4)
        for name, tensor in slow.tensors.items():
            torch.testing.assert_close(trainee.sae.tensors[name].detach(), tensor.detach(), rtol=1e-4, atol=1e-5)
    assert clipped >= 3
    if constraint == "soft_frozen_decoder":
        cosines = (trainee.sae.w_dec.detach() * trainee.start.w_dec).sum(1)
        assert int((cosines < 0.99 + 1e-5).sum()) >= 3


def test_rows_of_a_unit_decoder_come_back_to_norm_one():
    trainee = make_trainee("topk", "trained", training=settings(20, lr=0.05))
    for number, batch in enumerate(batches(20)):
        trainee.step(batch, number)
        torch.testing.assert_close(trainee.sae.w_dec.detach().norm(dim=1), torch.ones(D_SAE), rtol=1e-6, atol=1e-6)


def test_thresholds_of_a_frozen_encoder_move():
    trainee = make_trainee("jumprelu", "frozen_encoder", on_architecture=JUMP)
    before = bits(trainee)
    for number, batch in enumerate(batches(10)):
        trainee.step(batch, number)
    after = bits(trainee)
    assert not torch.equal(before["threshold"], after["threshold"])
    assert torch.equal(before["W_enc"], after["W_enc"])
    assert torch.equal(before["b_enc"], after["b_enc"])
    assert float(after["threshold"].min()) >= 0


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_a_frozen_encoder_drops_the_loss_for_dead_latents(architecture):
    names = {c: [w.term.name for w in make_trainee(architecture, c).recipe.objective.terms] for c in CONSTRAINTS}
    assert "aux_k" in names["trained"]
    assert "aux_k" in names["frozen_decoder"]
    assert "aux_k" not in names["frozen_encoder"]
    kept = make_trainee(architecture, "frozen_encoder", keep_aux=True)
    assert "aux_k" in [weighted.term.name for weighted in kept.recipe.objective.terms]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twins_have_the_same_loss_at_the_first_step(architecture):
    batch = batches(1)[0]
    losses = {}
    for constraint in CONSTRAINTS:
        trainee = make_trainee(architecture, constraint, init="iso")
        constant = "orthogonality" in dict(trainee.recipe.objective.dropped)
        if trainee.constraint.trains and not constant:
            trainee.step(batch, 0)
            losses[constraint] = trainee.report.loss
    assert len(losses) >= 3
    assert len(set(losses.values())) == 1


def test_latents_that_stay_silent_are_counted_as_dead():
    trainee = make_trainee("relu", "trained", training=settings(10, dead_rows=2 * BATCH, lr=1e-6))
    silent = [3, 7, 11]
    with torch.no_grad():
        trainee.sae.tensors["b_enc"][silent] = -100.0
    shares = []
    for number, batch in enumerate(batches(6, x=activations(6 * BATCH))):
        if number == 3:
            with torch.no_grad():
                trainee.sae.tensors["b_enc"][7] = 100.0
        trainee.step(batch, number)
        shares.append(round(trainee.report.dead_share * D_SAE))
    assert shares == [0, 0, 3, 3, 2, 2]


def test_the_running_threshold_follows_the_smallest_kept_value():
    trainee = make_trainee("batch_topk", "trained", training=settings(20))
    smallest = []
    for number, batch in enumerate(batches(20)):
        pre = trainee.sae.pre_activations(batch)
        kept = pre[pre > 0].sort(descending=True).values[: round(L0 * BATCH)]
        trainee.step(batch, number)
        if number < 2:  # the estimate starts after a tenth of the steps
            assert trainee.threshold_average is None
        else:
            smallest.append(float(kept.min()))
    average = smallest[0]
    for value in smallest[1:]:
        average = 0.999 * average + 0.001 * value
    assert trainee.threshold_average == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize("name", ["relu", "topk"])
def test_only_calibrated_rules_have_a_running_threshold(name):
    trainee = make_trainee(name, "trained", training=settings(4))
    for number, batch in enumerate(batches(4)):
        trainee.step(batch, number)
    assert trainee.threshold_average is None


def test_held_out_variance_is_explained_variance():
    trainee = make_trainee("relu", "trained")
    back = trainee.sae.reconstruct(X).double()
    wanted = 1 - (X - back).square().sum() / (X - X.mean(0)).double().square().sum()
    assert trainee.heldout_variance(X) == pytest.approx(float(wanted), rel=1e-5)


class Spoiled(Term):
    """A loss that is finite with a gradient that is not, from some step on."""

    name = "spoiled"

    def loss(self, step):
        return (step.tensors["b_dec"] * 0).abs().sqrt().sum()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    trainee = make_trainee("relu", "trained")
    trainee.recipe.__dict__["objective"] = Objective((*trainee.recipe.objective.terms, WeightedTerm(Spoiled())))
    before = bits(trainee)
    with pytest.raises(TrainingDivergedError, match="step 0"):
        trainee.step(batches(1)[0], 0)
    assert same_bits(before, bits(trainee))


def test_certificates_tell_frozen_from_moved():
    draw = base_draw()
    found = {}
    for constraint in ("trained", "frozen_decoder", "frozen_encoder"):
        trainee = make_trainee("batch_topk", constraint)
        origin = Origin.of(draw, trainee.start, trainee.sae, trainee.frozen)
        for number, batch in enumerate(batches(10)):
            trainee.step(batch, number)
        found[constraint] = certify(origin, trainee.start, trainee.sae, trainee.sae, trainee.constraint, "order")
    assert {len({c[key] for c in found.values()}) for key in ("base_draw_sha256", "w_dec_start_sha256")} == {1}
    assert found["trained"]["frozen"] == {}
    hashes = found["frozen_decoder"]["frozen"]["W_dec"]
    assert hashes["before"] == hashes["after"] == found["frozen_decoder"]["w_dec_start_sha256"]
    assert hashes["before"] == tensor_sha256(trainee.start.w_dec)
    assert set(found["frozen_encoder"]["frozen"]) == {"W_enc", "b_enc"}
    assert found["frozen_decoder"]["decoder_cosine"]["min"] == pytest.approx(1.0, abs=1e-6)
    assert found["trained"]["decoder_cosine"]["min"] < 0.999
    moved = make_trainee("batch_topk", "frozen_decoder")
    origin = Origin.of(draw, moved.start, moved.sae, moved.frozen)
    moved.sae.w_dec.add_(1e-3)
    told = certify(origin, moved.start, moved.sae, moved.sae, moved.constraint, "order")["frozen"]["W_dec"]
    assert told["before"] != told["after"]
