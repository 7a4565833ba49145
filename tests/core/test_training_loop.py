"""Groups in lock-step: bit-equal to training alone, whatever happens to the others."""

from __future__ import annotations

import json

import pytest
import torch

from saebench_core.kernels import Selection
from saebench_core.objectives import Objective, Term, WeightedTerm
from saebench_core.training.loop import train_group
from saebench_core.training.trainee import TrainingDivergedError
from tests.helpers.training import (
    BATCH,
    D_SAE,
    WIDE,
    activations,
    bits,
    make_trainee,
    quiet,
    same_bits,
    settings,
    stream,
    trainable_names,
)

X = activations()
STEPS = 15
ARCHITECTURES = trainable_names("architecture")
NAMES = [(a, c, "narrow") for a in ARCHITECTURES for c in trainable_names("constraint")]
NAMES += [(a, c, "wide") for a in ARCHITECTURES for c in ("trained", "frozen_decoder")]


def trainee_of(name, seed=0):
    # a few latents die at once, so that the loss for dead latents takes part
    width = WIDE if name[2:] == ("wide",) else D_SAE
    return make_trainee(*name[:2], seed=seed, training=settings(STEPS, dead_rows=BATCH), d_sae=width)


def train(trainees, seed=0, x=X):
    return train_group(trainees, stream(x, settings(STEPS), seed), 1.0, x[:100], quiet, "test")


@pytest.fixture(scope="module")
def group():
    trainees = {"/".join(name): trainee_of(name) for name in NAMES}
    outcome = train(trainees)
    return {name: bits(trainee) for name, trainee in trainees.items()}, outcome


@pytest.mark.parametrize("name", NAMES, ids="/".join)
def test_an_sae_in_a_group_is_bit_equal_to_the_same_sae_alone(name, group):
    alone = trainee_of(name)
    outcome = train({"alone": alone})
    assert same_bits(bits(alone), group[0]["/".join(name)])
    assert outcome.batch_order_sha256 == group[1].batch_order_sha256
    assert not outcome.failures
    assert not group[1].failures


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "jumprelu"])
def test_wide_saes_select_and_multiply_sparsely(architecture, monkeypatch):
    monkeypatch.setattr(Selection, "scatter", lambda self, values: pytest.fail("a dense matrix was made"))
    trainee = trainee_of((architecture, "trained", "wide"))
    if architecture == "jumprelu":
        trainee.sae.tensors["threshold"].detach().fill_(1.0)  # past its first steps, in which half of all fire
    train({"one": trainee})


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    results = []
    for seed, order in ((0, 0), (0, 0), (1, 0), (0, 1)):
        trainee = trainee_of(("batch_topk", "trained"), seed)
        outcome = train({"one": trainee}, order)
        results.append((bits(trainee), outcome.batch_order_sha256))
    assert same_bits(results[0][0], results[1][0])
    assert not same_bits(results[0][0], results[2][0])
    assert not same_bits(results[0][0], results[3][0])
    assert results[0][1] == results[1][1] == results[2][1] != results[3][1]


class Raising:
    """Makes an SAE fail at a step, as a constraint of a stranger might."""

    def __init__(self, at):
        self.left = at

    def __call__(self, sae, start):
        if self.left == 0:
            raise KeyError("a plugin's own mistake")
        self.left -= 1


class NaNAfter(Term):
    """A loss that is no number any more after some steps."""

    name = "nan"

    def __init__(self, at):
        self.left = at

    def loss(self, step):
        self.left -= 1
        return step.reconstruction.sum() * (float("nan") if self.left < 0 else 0.0)


def raising_trainee(at):
    trainee = trainee_of(("topk", "soft_frozen_decoder"))
    trainee.constraint.project = Raising(at)
    return trainee


def diverging_trainee(at):
    trainee = trainee_of(("topk", "trained"))
    terms = (*trainee.recipe.objective.terms, WeightedTerm(NaNAfter(at)))
    object.__setattr__(trainee.recipe, "objective", Objective(terms))
    return trainee


@pytest.mark.parametrize("at", [0, 7, STEPS - 1])
@pytest.mark.parametrize(
    ("spoiled", "error"), [(raising_trainee, KeyError), (diverging_trainee, TrainingDivergedError)]
)
def test_an_sae_that_fails_leaves_the_group_and_the_others_are_not_harmed(spoiled, error, at, group):
    others = [("batch_topk", "trained"), ("relu", "frozen_encoder")]
    trainees = {"first": trainee_of(others[0]), "bad": spoiled(at), "last": trainee_of(others[1])}
    outcome = train(trainees)
    assert set(outcome.failures) == {"bad"}
    assert isinstance(outcome.failures["bad"], error)
    assert error is KeyError or str(outcome.failures["bad"]).startswith(f"the loss became nan at step {at}")
    for name, key in zip(("first", "last"), others, strict=True):
        assert same_bits(bits(trainees[name]), group[0]["/".join((*key, "narrow"))])
    assert outcome.batch_order_sha256 == group[1].batch_order_sha256
    assert all(tensor.isfinite().all() for tensor in bits(trainees["bad"]).values())
    assert max(outcome.curves["first"].heldout) == STEPS


def test_a_group_of_failures_ends():
    seen = []
    trainees = {"bad": raising_trainee(2)}
    rows = stream(X, settings(STEPS))
    outcome = train_group(trainees, rows, 1.0, X[:10], lambda label, done, total: seen.append(done), "test")
    assert isinstance(outcome.failures["bad"], KeyError)
    assert seen == [1, 2, 3]


def test_untrained_saes_see_no_batch_but_share_the_order():
    trainee = trainee_of(("topk", "untrained"))
    before = bits(trainee)
    rows = stream(X, settings(STEPS))
    rows.reader = type("Untouched", (), {"window": None})()  # has no rows to give
    outcome = train_group({"one": trainee}, rows, 1.0, X[:10], quiet, "test")
    assert same_bits(before, bits(trainee))
    assert outcome.batch_order_sha256 == train({"one": trainee_of(("topk", "trained"))}).batch_order_sha256
    assert outcome.curves["one"].points == []


def test_batches_and_held_out_rows_are_scaled():
    plain, scaled = (trainee_of(("topk", "trained")) for _ in range(2))
    one = train({"one": plain})
    rows = stream(4.0 * X, settings(STEPS))
    other = train_group({"one": scaled}, rows, 4.0, 4.0 * X[:100], quiet, "test")
    assert same_bits(bits(plain), bits(scaled))
    assert one.curves["one"].heldout == other.curves["one"].heldout


def test_curves_hold_finite_numbers_and_held_out_variance(tmp_path):
    outcome = train({"one": trainee_of(("relu", "trained"))})
    curve = outcome.curves["one"]
    assert sorted(curve.heldout) == list(range(1, STEPS + 1))
    assert [point["step"] for point in curve.points] == list(range(1, STEPS + 1))
    assert [point["rows"] for point in curve.points] == [BATCH * step for step in range(1, STEPS + 1)]
    names = {"loss", "l0", "explained_variance", "dead_share", "grad_norm", "lr"}
    assert set(curve.points[0]["values"]) == {*names, "heldout_explained_variance"}
    assert curve.points[-1]["values"]["loss"] < curve.points[0]["values"]["loss"]
    curve.write(tmp_path / "curve.jsonl")
    assert [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()] == curve.points


def test_what_is_not_finite_is_left_out_of_the_curve():
    constant = torch.ones(BATCH * STEPS, X.shape[1])
    trainee = make_trainee("relu", "trained", training=settings(STEPS))
    outcome = train_group({"one": trainee}, stream(constant, settings(STEPS)), 1.0, X[:10], quiet, "test")
    assert "explained_variance" not in outcome.curves["one"].points[0]["values"]
    assert "loss" in outcome.curves["one"].points[0]["values"]


class Interrupted:
    """A library that makes an error of its own out of the user's interruption."""

    def __call__(self, sae, start):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("cannot go on") from None


def test_an_interruption_that_a_library_has_turned_into_an_error_ends_the_training():
    trainee = trainee_of(("topk", "trained"))
    trainee.constraint.project = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        train({"one": trainee})
