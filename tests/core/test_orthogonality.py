"""The penalty on close decoder directions, against loops in fp64."""

from __future__ import annotations

import pytest
import torch

from saebench_core.kernels import from_mask
from saebench_core.objectives import Orthogonality, Step
from saebench_core.rules import ReLU
from tests.helpers.training import normal

ROWS = torch.cat([normal(20, 4, seed=1), -normal(3, 4, seed=1)])  # a few are opposite


def step_with(rows, number=0):
    x = torch.zeros(2, rows.shape[1])
    selection, none = from_mask(torch.zeros(2, rows.shape[0], dtype=torch.bool)), torch.zeros(0)
    dead = torch.zeros(rows.shape[0], dtype=torch.bool)
    return Step(x, x, x, {"W_dec": rows}, ReLU(), selection, none, none, x, dead, 0.0, number)


def loss_and_gradient(term, rows, number=0):
    rows = rows.clone().requires_grad_()
    loss = term.loss(step_with(rows, number))
    loss.backward()
    return float(loss.detach()), rows.grad


def slow(rows, reduce, sign):
    rows = rows.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for j, row in enumerate(rows):
        cosines = [torch.cosine_similarity(row, other, dim=0) for i, other in enumerate(rows) if i != j]
        squares = torch.stack([(c.relu() if sign == "positive" else c).square() for c in cosines])
        total = total + (squares.max() if reduce == "max" else squares.mean())
    loss = total / len(rows)
    loss.backward()
    return float(loss.detach()), rows.grad


@pytest.mark.parametrize("block", [1 << 22, 5 * len(ROWS)])
@pytest.mark.parametrize("sign", ["positive", "abs"])
@pytest.mark.parametrize("reduce", ["max", "mean_sq"])
def test_the_penalty_and_its_gradient_equal_loops(reduce, sign, block, monkeypatch):
    monkeypatch.setattr("saebench_core.objectives.orthogonality._BLOCK", block)
    loss, gradient = loss_and_gradient(Orthogonality(reduce=reduce, sign=sign), ROWS)
    wanted, slope = slow(ROWS, reduce, sign)
    assert loss == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)


def test_by_hand():
    rows = torch.tensor([[1.0, 0.0], [3.0, 3.0], [-2.0, 0.0]])
    half = 0.5  # cos(45 degrees) squared
    assert loss_and_gradient(Orthogonality(), rows)[0] == pytest.approx((half + half + 0) / 3)
    assert loss_and_gradient(Orthogonality(sign="abs"), rows)[0] == pytest.approx((1 + half + 1) / 3)
    mean = (half / 2 + half / 2 + 0) / 3
    assert loss_and_gradient(Orthogonality(reduce="mean_sq"), rows)[0] == pytest.approx(mean)


@pytest.mark.parametrize("reduce", ["max", "mean_sq"])
def test_chunks_hide_pairs_and_change_from_step_to_step(reduce):
    whole = loss_and_gradient(Orthogonality(reduce=reduce), ROWS)[0]
    term = Orthogonality(chunk=6, reduce=reduce)
    found = [loss_and_gradient(term, ROWS, number)[0] for number in range(30)]
    assert len({round(value, 7) for value in found}) > 20
    if reduce == "max":
        assert max(found) < whole
    else:
        assert sum(found) / 30 == pytest.approx(whole, rel=0.2)  # every pair is met as often
    assert found == [loss_and_gradient(term, ROWS, number)[0] for number in range(30)]


def test_a_chunk_is_never_larger_than_asked():
    for d_sae, chunk in ((23, 6), (24, 6), (25, 6), (7, 2), (5, 2)):
        parts = list(Orthogonality(chunk=chunk)._chunks(0, d_sae, torch.device("cpu")))
        assert max(len(part) for part in parts) <= chunk
        assert sorted(torch.cat(parts).tolist()) == list(range(d_sae))


def test_steps_between_are_free():
    term = Orthogonality(every=3)
    losses = [float(term.loss(step_with(ROWS, number))) for number in range(7)]
    assert [loss > 0 for loss in losses] == [True, False, False, True, False, False, True]


def test_a_single_latent_has_no_neighbour():
    for reduce in ("max", "mean_sq"):
        assert float(Orthogonality(reduce=reduce).loss(step_with(ROWS[:1]))) == 0
        assert torch.isfinite(Orthogonality(chunk=2, reduce=reduce).loss(step_with(ROWS[:3])))
