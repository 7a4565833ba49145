"""Sparse training against dense training in fp32: the same budget on the same data ends at the same quality."""

from __future__ import annotations

import pytest
import torch

from saebench_core.interfaces.architecture import Shape
from saebench_core.interfaces.constraint import BaseDraw, Statistics
from saebench_core.randomness import named_generator
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.trainee import Trainee
from tests.helpers.dense import DenseSAE
from tests.helpers.training import build, trainable_names

D_IN, FEATURES, D_SAE, BATCH, L0 = 48, 192, 384, 512, 5
STEPS = {"short": 40, "whole": 1500}
ARCHITECTURES = trainable_names("architecture")


def world(rows, seed):
    """Rows of a planted world with unit mean-square norm."""
    features = torch.nn.functional.normalize(torch.randn(FEATURES, D_IN, generator=named_generator("f")), dim=1)
    draws = named_generator("rows", seed)
    fires = torch.rand(rows, FEATURES, generator=draws) < L0 / FEATURES
    x = (fires * torch.exp(0.25 * torch.randn(rows, FEATURES, generator=draws))) @ features
    return x / 2.4


def pair(architecture, steps):
    settings = TrainingSettings.model_validate(
        {"steps": steps, "batch_size": BATCH, "lr": 2e-3, "dead_rows": 20 * BATCH}
    )
    shape, held = Shape(D_IN, D_SAE, L0), build("constraint", "trained")
    recipe = build("architecture", architecture, d_sae=D_SAE).recipe(shape)
    draw = BaseDraw.from_generator(named_generator(0, "weights"), D_SAE, D_IN)
    start = held.initialise(draw, "iso", Statistics(1, torch.zeros(D_IN).double(), 1.0, torch.eye(D_IN).double()))
    mean = world(4096, 99).mean(0)
    trainee = Trainee(recipe, held, start, mean, settings, shape)
    return trainee, DenseSAE(architecture, start.w_dec, mean, L0, settings), settings


def train(architecture, steps):
    sparse, dense, settings = pair(architecture, steps)
    sparse._dense.now = False  # from the first step on
    for number in range(settings.total_steps):
        x = world(BATCH, number)
        sparse.step(x, number)
        dense.step(x, number)
    return sparse, dense


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_steps_are_the_same_numbers(architecture):
    sparse, dense = train(architecture, STEPS["short"])
    for ours, theirs in ((sparse.sae.w_dec, dense.w_dec), (sparse.sae.w_enc, dense.w_enc)):
        apart = (ours - theirs).detach().norm() / theirs.detach().norm()
        assert float(apart) < 2e-3, "rounding grows, but slowly"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_explained_variance_is_that_of_dense_training(architecture):
    sparse, dense = train(architecture, STEPS["whole"])
    x = world(16384, 10**6)
    ours, theirs = sparse.heldout_variance(x), dense.explained_variance(x)
    assert ours == pytest.approx(theirs, abs=0.01)  # starts a millionth apart end up to 0.007 apart, in either way
    assert theirs > 0.3, "both learned something"
