"""Controllers of penalties: continuity across changes of form, and states that go on where they were."""

from __future__ import annotations

import json

import pytest
import torch

from saebench_core.kernels import from_mask
from saebench_core.objectives import L1, Objective, PowerPenalty, Reconstruction, Step, WeightedTerm
from saebench_core.rules import ReLU
from saebench_core.training.controllers import Continuity, Steering
from tests.helpers.training import generator

STEPS = 200
TERM = PowerPenalty(end=0.2, changes=4, first=0.2, last=0.8)


def view(number, seed=None):
    values = torch.rand(4, 6, generator=generator(number if seed is None else seed)) + 0.01
    selection, x = from_mask(torch.ones(4, 6, dtype=torch.bool)), torch.zeros(4, 2)
    flat = values.flatten()
    dead = torch.zeros(6, dtype=torch.bool)
    return Step(x, x, x, {}, ReLU(), selection, flat, flat, x, dead, number / STEPS, number)


def test_the_penalty_keeps_its_value_when_its_form_changes():
    continuity, before = Continuity(TERM, STEPS), 0.0
    for number in range(STEPS):
        weighted = continuity.multiplier * float(TERM.loss(view(number, seed=1)))
        if number:
            assert weighted == pytest.approx(before, rel=1e-5)
        before = weighted
        continuity.update(number, view(number, seed=1))
    assert continuity.multiplier != 1.0
    assert continuity.recent == []


def test_the_ratio_is_that_of_means_over_ten_steps():
    continuity = Continuity(TERM, STEPS)
    for number in range(40):
        continuity.update(number, view(number))
    present, after = (sum(float(TERM.at(view(number), stage)) for number in range(30, 40)) for stage in (0, 1))
    assert continuity.multiplier == pytest.approx(present / after)


def test_changes_in_quick_succession_are_continuous_too():
    term = PowerPenalty(changes=10, first=0.2, last=0.4)
    steps, continuity, before = 20, Continuity(PowerPenalty(changes=10, first=0.2, last=0.4), 20), 0.0
    for number in range(steps):
        seen = Step(**{**view(number, seed=1).__dict__, "progress": number / steps})
        weighted = continuity.multiplier * float(term.loss(seen))
        if number:
            assert weighted == pytest.approx(before, rel=1e-5)
        before = weighted
        continuity.update(number, seen)


def test_a_penalty_of_nothing_leaves_the_weight():
    continuity = Continuity(TERM, STEPS)
    silent = Step(**{**view(39).__dict__, "values": torch.zeros(24)})
    continuity.update(39, silent)
    assert continuity.multiplier == 1.0


def objective():
    terms = (WeightedTerm(Reconstruction()), WeightedTerm(TERM, 0.1, "warmup", controlled=True, l0=3.0))
    return Objective(terms)


def test_multipliers_are_products_by_name():
    steering = Steering(objective(), STEPS)
    assert steering.multipliers() == {"power": 1.0}
    for number in range(60):
        steering.update(number, view(number))
    assert steering.l0.multiplier > 1  # all six of six latents are active, three are wanted
    assert steering.multipliers() == {"power": steering.l0.multiplier * steering.continuity["power"].multiplier}
    plain = Objective((WeightedTerm(Reconstruction()), WeightedTerm(L1(), 0.1)))
    assert Steering(plain, STEPS).multipliers() == {}


@pytest.mark.parametrize("cut", [1, 35, 40, 77, 199])
def test_what_goes_on_from_a_state_ends_the_same(cut):
    whole, first = Steering(objective(), STEPS), Steering(objective(), STEPS)
    for number in range(STEPS):
        whole.update(number, view(number))
        if number < cut:
            first.update(number, view(number))
    second = Steering(objective(), STEPS)
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    for number in range(cut, STEPS):
        second.update(number, view(number))
    assert second.state() == whole.state()


def test_nothing_is_shared_with_a_state():
    steering = Steering(objective(), STEPS)
    steering.update(35, view(35))
    state = steering.state()
    kept = json.dumps(state)
    steering.update(36, view(36))
    assert json.dumps(state) == kept


def test_an_objective_without_controllers_has_an_empty_state():
    steering = Steering(Objective((WeightedTerm(Reconstruction()),)), STEPS)
    steering.update(0, view(0))
    steering.load_state(json.loads(json.dumps(steering.state())))
    assert steering.multipliers() == {}
