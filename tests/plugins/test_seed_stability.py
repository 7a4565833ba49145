"""Stability between seeds: the numbers by hand, and the plan that brings the SAEs of other seeds to a score."""

from __future__ import annotations

import json

import pytest
import torch
from saebench_plugins.metrics.seed_stability import SeedStability, SeedStabilityConfig

from saebench_core.interfaces.metric import Prepared, Subject
from saebench_core.rules import ReLU
from saebench_core.sae import SparseAutoencoder
from tests.helpers.registries import call, changed, plan_of
from tests.helpers.runs import cells, run
from tests.helpers.training import normal

D = 6
STABLE = changed(("  - {type: feature_recovery}", "  - {type: seed_stability, threshold: 0.5}"))


def subject(decoder, start, others=()):
    sae = SparseAutoencoder.start(decoder.T, decoder, torch.zeros(D), ReLU(), "none")
    return Subject(sae, lambda: start, {seed: lambda found=found: found for seed, found in enumerate(others, 1)})


def score(given):
    metric = SeedStability(SeedStabilityConfig())
    scored = metric.score(given, Prepared(), None)
    assert set(scored.scores) == set(metric.scores())
    return {name: getattr(found, "value", found) for name, found in scored.scores.items()}, scored


def test_the_same_directions_in_another_order_and_length_are_stable():
    decoder, start = normal(9, D, seed=1), normal(9, D, seed=2)
    other = subject(3.0 * decoder.flip(0), start.flip(0))
    found, scored = score(subject(decoder, start, [other, other]))
    assert [found["mean"], found["fraction_0.8"]] == [pytest.approx(1.0, abs=1e-6)] * 2
    assert scored.scores["mean"].n == 18
    starts = {found[name].reason for name in ("mean_at_start", "fraction_0.8_at_start")}
    assert starts == {"seeds start from directions that they share"}  # they are no null, then


def test_by_hand_over_two_other_seeds():
    axes = torch.eye(D)
    tilted = 0.6 * axes[0] + 0.8 * axes[1]
    near, far = 0.96 * axes[3] + 0.28 * axes[4], 0.6 * axes[4] + 0.8 * axes[5]
    first = subject(torch.stack([axes[0], axes[2]]), torch.stack([near, far]))
    second = subject(torch.stack([tilted, -axes[2]]), near.repeat(2, 1))
    found, scored = score(subject(axes[[0, 2]], axes[[3, 4]], [first, second]))
    assert found["mean"] == pytest.approx((1 + 1 + 0.6 + 0) / 4)
    assert found["fraction_0.8"] == pytest.approx(2 / 4)
    assert found["mean_at_start"] == pytest.approx((0.96 + 0.6 + 0.96 + 0.28) / 4)
    assert found["fraction_0.8_at_start"] == pytest.approx(2 / 4)
    assert scored.items["best_cosine"] == [pytest.approx(0.8), pytest.approx(0.5)]


def test_starts_that_seeds_share_in_part_are_no_null():
    start = normal(5, D)
    found, _ = score(subject(normal(5, D, seed=1), start, [subject(normal(5, D, seed=2), start.roll(1, 0))]))
    assert found["mean_at_start"].reason == "seeds start from directions that they share"
    half = torch.cat([start[:2], normal(3, D, seed=3)])
    found, _ = score(subject(normal(5, D, seed=1), start, [subject(normal(5, D, seed=2), half)]))
    assert found["mean_at_start"].reason and found["mean"] < 0.9


def test_one_seed_alone_has_no_stability():
    found, _ = score(subject(normal(4, D), normal(4, D)))
    assert {value.reason for value in found.values()} == {"there is no other seed among the chosen cells"}


def test_a_score_waits_for_the_other_seeds_and_its_key_has_them():
    plan = plan_of(STABLE)
    tasks = {
        task.cells[0].seed: task
        for task in plan.tasks
        if task.kind == "score" and task.metric.name == "seed_stability" and task.cells[0].constraint.name == "trained"
    }
    assert sorted(tasks) == [0, 1]
    for seed, task in tasks.items():
        ((other, product),) = task.beside
        assert other.seed == 1 - seed
        assert other.constraint.name == "trained"
        assert product is plan.train[other.cell_id][1]
        assert plan.train[other.cell_id][0] in task.needs
    alone = plan_of(STABLE, only=("seed=0",))
    assert all(task.beside == () for task in alone.tasks)
    third = plan_of(STABLE.replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    keys = [
        {task.products[0].key for task in found.tasks if task.kind == "score" and task.metric.name == "seed_stability"}
        for found in (plan, alone, third)
    ]
    assert not keys[0] & keys[1] and not keys[0] & keys[2]
    others = [
        {task.products[0].key for task in found.tasks if task.kind == "score" and task.metric.name == "reconstruction"}
        for found in (plan, third)
    ]
    assert others[0] < others[1]


def test_in_a_run_frozen_directions_are_as_stable_as_their_draw(tmp_path):
    (tmp_path / "registry.yaml").write_text(STABLE)
    assert run(tmp_path).code == 0
    found = {(cell["constraint"]["name"], cell["seed"]): cell["metrics"] for cell in cells(tmp_path)}
    frozen = found["frozen_decoder", 0]
    assert frozen["seed_stability/mean"]["value"] == pytest.approx(frozen["seed_stability/mean_at_start"]["value"])
    starts = {metrics["seed_stability/mean_at_start"]["value"] for metrics in found.values()}
    assert min(starts) > 0.3 and max(starts) < 0.9


def test_a_seed_that_fails_is_named_by_the_score_that_waits_for_it(tmp_path):
    failing = tmp_path / "failing.py"
    failing.write_text(
        """
from typing import Literal
from saebench_core import Constraint, ConstraintConfig, ConstraintSpec, hookimpl, draw_directions

class FailsConfig(ConstraintConfig):
    type: Literal["fails"] = "fails"

class Fails(Constraint):
    def __init__(self, config):
        self.count = 0
    def initialise(self, draw, init, statistics):
        if float(draw.normal[0, 0]) > 0:
            raise ValueError("no such draw")
        return super().initialise(draw, init, statistics)
    def frozen(self, roles, recipe):
        return frozenset()

@hookimpl
def register_constraints():
    return [ConstraintSpec(config=FailsConfig, build=Fails, summary="fails by its draw")]
"""
    )
    text = STABLE.replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3]").replace("  - {type: untrained}", "  - {type: fails}")
    (tmp_path / "registry.yaml").write_text(text)
    assert call("--plugin-file", failing, "run", "--no-tracking", cwd=tmp_path).code == 1
    shown = call("--plugin-file", failing, "results", "--json", cwd=tmp_path).out
    states = {cell["seed"]: cell for cell in json.loads(shown)["cells"] if cell["constraint"]["name"] == "fails"}
    broken = {seed for seed, cell in states.items() if not cell["metrics"]}
    assert 0 < len(broken) < 4
    for seed in set(states) - broken:
        assert states[seed]["status"] == "failed"
        assert states[seed]["error"] == f"seed_stability: seed {min(broken)}: ValueError: no such draw"
        assert states[seed]["metrics"]["reconstruction/l0"]["value"] > 0
