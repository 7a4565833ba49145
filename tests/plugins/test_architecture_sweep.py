"""Every architecture under every constraint, init and seed: what must hold of all of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from saebench_core.randomness import tensor_sha256
from saebench_core.training.certificate import Origin, certify, frozen_hashes
from tests.helpers.training import (
    BATCH,
    CONSTRAINT_INITS,
    D_SAE,
    WIDE,
    activations,
    base_draw,
    bits,
    make_trainee,
    same_bits,
    settings,
    stream,
    trainable_names,
)

X = activations()
STEPS = 40
FORMS = {
    "relu": {},
    "relu april": {"form": "april_2024"},
    "topk": {},
    "batch_topk": {},
    "jumprelu": {"bandwidth": 0.05, "threshold": 0.05},
    "jumprelu step": {"loss": "step_l0", "bandwidth": 0.05, "threshold": 0.05},
    "jumprelu tanh": {"loss": "tanh"},
    "matryoshka": {},
    "gated": {},
    "ortsae": {"chunk": 10},
    "p_anneal": {},
}
CONSTRAINTS = trainable_names("constraint")
CASES = list(itertools.product(FORMS, CONSTRAINTS, CONSTRAINT_INITS, (0, 1)))


def made(form, constraint, init, seed, **training):
    held = settings(STEPS, **({"lr": 0.01, "weight_decay": 0.1, "dead_rows": BATCH} | training))
    width = WIDE if seed else D_SAE  # the second seed takes the sparse ways
    return make_trainee(form.split()[0], constraint, X, seed, held, FORMS[form], d_sae=width, init=init)


def run(trainee, seed, each=None, x=X, steps=None):
    for number, batch in enumerate(stream(x, trainee.settings, seed).batches()):
        if steps is not None and number == steps:
            break
        trainee.step(batch, number)
        if each is not None:
            each(trainee)
    return trainee


def test_the_sweep_has_its_two_hundred_cases():
    assert len(CASES) >= 200
    assert {form.split()[0] for form in FORMS} == set(trainable_names("architecture"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", "_"))
def test_what_holds_of_all(case):
    form, constraint, _, seed = case
    trainee = made(*case)
    draw = base_draw(seed, trainee.sae.d_sae)
    before, origin = bits(trainee), Origin.of(draw, trainee.start, trainee.sae, trainee.frozen)
    assert trainee.sae.w_enc.data_ptr() != trainee.sae.w_dec.data_ptr()  # a copy, not a view
    assert origin.w_dec_start_sha256 == Origin.of(draw, *_twin(case)).w_dec_start_sha256
    lowest = []

    def look(now):
        rows = now.sae.w_dec.detach()
        lowest.append(float(torch.cosine_similarity(rows.double(), now.start.w_dec.double(), dim=1).min()))
        if now.unit_decoder:
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), rtol=1e-6, atol=1e-6)
        if form.startswith("jumprelu"):
            assert float(now.sae.tensors["threshold"].detach().min()) >= 0

    run(trainee, seed, look if trainee.constraint.trains else None)
    after = bits(trainee)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    _moved_and_held(trainee, before, after)
    assert frozen_hashes(trainee.sae, trainee.frozen) == dict(origin.frozen)
    if constraint == "soft_frozen_decoder":
        assert min(lowest) >= 0.8 - 1e-6
    if constraint == "frozen_decoder":
        assert torch.equal(trainee.sae.w_dec, trainee.start.w_dec)
    if constraint == "frozen_encoder":
        _reads_as_at_the_start(trainee, before)
    certificate = certify(origin, trainee.start, trainee.sae, trainee.sae, trainee.constraint, "order")
    assert certificate["base_draw_sha256"] == tensor_sha256(draw.normal)
    again = run(made(*case), seed)
    assert same_bits(bits(again), after)


def _twin(case):
    """Return what the hashes of a fully trained twin are made from."""
    form, _, init, seed = case
    twin = made(form, "trained", init, seed)
    return twin.start, twin.sae, twin.frozen


def _moved_and_held(trainee, before, after):
    """Assert that exactly what is trained has moved."""
    estimated = {name for name, info in trainee.sae.info.items() if info.estimated}
    trained = set(before) - trainee.frozen - estimated if trainee.constraint.trains else set()
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    if trainee.constraint.trains:
        assert trained >= {"b_dec"}
    if trainee.frozen & {"W_enc"} and "threshold" in before and not estimated and trainee.constraint.trains:
        assert "threshold" in trained


def _reads_as_at_the_start(trainee, before):
    """Assert that neither encoder nor centre has changed what is read."""
    centre = before.get("centre", torch.zeros_like(before["b_dec"]))
    assert torch.equal(trainee.sae.centre().detach(), centre)
    assert torch.equal(trainee.sae.w_enc, before["W_enc"])
    assert "aux_k" not in [weighted.term.name for weighted in trainee.recipe.objective.terms]


@pytest.mark.slow
@pytest.mark.parametrize("init", CONSTRAINT_INITS)
@pytest.mark.parametrize("form", FORMS)
def test_caps_from_end_to_end_are_full_training_and_a_frozen_decoder(form, init):
    def capped(tau):
        held = settings(STEPS, lr=0.01)
        name, given = form.split()[0], FORMS[form]
        return run(make_trainee(name, "soft_frozen_decoder", X, 0, held, given, init=init, tau=tau), 0)

    free = run(made(form, "trained", init, 0, weight_decay=0.01, dead_rows=None), 0)
    assert same_bits(bits(capped(-1.0)), bits(free))
    rows = capped(1.0).sae.w_dec.detach()
    assert float(torch.cosine_similarity(rows, free.start.w_dec, dim=1).min()) >= 1 - 1e-6
