"""Hierarchies of the synthetic backbone: children need their parents, exclusive siblings never meet."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from saebench_plugins.backbones._blocks import _spread
from saebench_plugins.backbones._correlations import Dependence
from saebench_plugins.backbones._hierarchy import Hierarchy
from saebench_plugins.backbones.synthetic import Synthetic, SyntheticConfig

from saebench_core.errors import InputError
from tests.helpers.contexts import FakeContext
from tests.helpers.training import generator

ROWS = 10 * 4096
TREES = {"roots": 2, "branching": 3, "depth": 2, "exclusive": 1.0}


def make(hierarchy, **keys):
    given = {
        "d_in": 6,
        "n_features": 30,
        "probability": {"type": "linear", "low": 0.02, "high": 0.4},
    } | ({} if "magnitude" in keys else {"lognormal_sigma": 0})
    backbone = Synthetic(SyntheticConfig.model_validate(given | {"hierarchy": hierarchy} | keys))
    backbone.prepare(FakeContext(None))
    return backbone


def codes_of(backbone):
    return backbone.codes("train", 0, ROWS).to_dense()


def test_parents_by_hand():
    forest = Hierarchy(roots=2, branching=3, depth=2).grow(30, generator(0))
    assert forest.levels == ((0, 2), (2, 8), (8, 26))
    assert (
        forest.parents.tolist() == [-1] * 2 + [0] * 3 + [1] * 3 + [p for p in range(2, 8) for _ in range(3)] + [-1] * 4
    )
    assert forest.exclusive.tolist() == [True] * 8 + [False] * 22
    half = Hierarchy(roots=2, branching=3, depth=2, exclusive=0.5).grow(30, generator(0))
    assert int(half.exclusive.sum()) == 4 and not bool(half.exclusive[8:].any())


def test_a_backbone_tells_its_parents_before_it_is_prepared():
    keys = {"d_in": 6, "n_features": 30, "probability": {"type": "zipf", "low": 0.01, "high": 0.1}}
    tree = Synthetic(SyntheticConfig.model_validate(keys | {"hierarchy": {"roots": 2, "branching": 3, "depth": 2}}))
    assert tree.parents().tolist() == Hierarchy(roots=2, branching=3, depth=2).grow(30, generator(0)).parents.tolist()
    flat = Synthetic(SyntheticConfig.model_validate(keys))
    assert flat.parents().tolist() == [-1] * 30


def test_synth_sae_benchs_forest_has_10880_features():
    assert Hierarchy().size == 128 * (1 + 4 + 16 + 64) == 10_880


@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("exclusive", [0.0, 1.0])
def test_children_need_their_parents_and_rivals_never_meet(compensate, exclusive):
    backbone = make(TREES | {"compensate": compensate, "exclusive": exclusive})
    fired = codes_of(backbone) > 0
    parents = backbone.parents()
    for child in range(2, 26):
        assert not bool((fired[:, child] & ~fired[:, parents[child]]).any())
    together = max(int(fired[:, family].sum(1).max()) for family in (slice(2, 5), slice(5, 8), slice(8, 11)))
    assert together == 1 if exclusive else together > 1


@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("exclusive", [0.0, 0.5, 1.0])
def test_features_fire_as_often_as_is_told(compensate, exclusive):
    backbone = make(TREES | {"compensate": compensate, "exclusive": exclusive})
    counts, p = (codes_of(backbone) > 0).sum(0).double(), backbone.probabilities().double()
    assert bool(((counts - ROWS * p).abs() < 5 * (ROWS * p * (1 - p)).sqrt() + 1).all())


def test_without_rivals_compensation_is_exact():
    deep = make(TREES | {"exclusive": 0.0}, probability={"type": "linear", "low": 0.1, "high": 0.4})
    base = torch.linspace(0.4, 0.1, 30)
    assert deep.probabilities().tolist() == pytest.approx(base.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    "probability", [{"type": "constant", "p": 0.1}, {"type": "log_uniform", "low": 1e-4, "high": 0.3}]
)
def test_probabilities_in_no_order_cannot_be_compensated(probability):
    """Without compensation the same is drawn, and children fire less often than they are told to."""
    with pytest.raises(ValidationError, match=f"probabilities are {probability['type']}.*compensate: false"):
        make(TREES, probability=probability)
    assert make(TREES | {"compensate": False}, probability=probability).probabilities().numel() == 30


def test_children_that_would_fire_as_often_as_their_parent_are_refused():
    with pytest.raises(InputError, match=r"24 of 24 children would have to fire as often as their parent does"):
        make(TREES, probability={"type": "linear", "low": 0.1, "high": 0.1})


def test_the_share_that_stays_by_counting():
    """Of three exclusive siblings with q = 0.5, 0.2, 0.9 the first stays in 0.5 E[1 / (1 + others)] of the rows."""
    forest = Hierarchy(roots=1, branching=3, depth=1).grow(4, generator(0))
    drawn = torch.tensor([0.8, 0.5, 0.2, 0.9], dtype=torch.float64)
    expected = []
    for one in range(1, 4):
        others = [float(drawn[other]) for other in range(1, 4) if other != one]
        mean = sum(
            math.prod(q if on else 1 - q for q, on in zip(others, pattern, strict=True)) / (1 + sum(pattern))
            for pattern in itertools.product((0, 1), repeat=2)
        )
        expected.append(0.8 * float(drawn[one]) * mean)
    assert forest.marginals(drawn).tolist() == pytest.approx([0.8, *expected], rel=1e-12)


WEAK = {"type": "rectified_normal", "first_mean": 0.6, "last_mean": 0.4, "std_mean": 0.5, "std_spread": 0.0}


def drawn_everywhere(backbone, seed):
    """Draw every feature in every row, then take away what must not fire: the law as SynthSAEBench states it."""
    draw, rng = backbone._drawing, generator(seed)
    forest, law, count = draw.forest, draw.law, draw.probabilities.numel()
    factor, own = (law.factor, law.own) if isinstance(law, Dependence) else (torch.zeros(count, 1), torch.ones(count))
    g = torch.randn(ROWS, factor.shape[1], generator=rng) @ factor.T
    g += own * torch.randn(ROWS, count, generator=rng)
    values = torch.relu(draw.magnitudes.mean + draw.magnitudes.std * torch.randn(ROWS, count, generator=rng))
    fired = (g > -torch.special.ndtri(draw.probabilities).float()) & (values > 0)
    for first, last in forest.levels[1:]:
        for child in range(first, last):
            fired[:, child] &= fired[:, forest.parents[child]]
        for parent in forest.parents[first:last].unique().tolist():
            family = (forest.parents == parent).nonzero()[:, 0]
            if forest.exclusive[parent]:
                lot = torch.rand(ROWS, family.numel(), generator=rng).where(fired[:, family], -1.0)
                fired[:, family] &= lot == lot.amax(dim=1, keepdim=True)
    return fired.double()


SHARED = [None, {"type": "low_rank", "rank": 2, "scale": 0.5}, {"type": "full", "scale": 0.9}]


@pytest.mark.parametrize("correlation", SHARED, ids=["independent", "low_rank", "full"])
@pytest.mark.parametrize("compensate", [True, False])
def test_what_is_drawn_below_parents_alone_fires_as_if_all_had_been_drawn(compensate, correlation):
    """The other way is slow: most of what it draws has no parent in its row."""
    backbone = make(TREES | {"compensate": compensate, "exclusive": 0.5}, correlation=correlation, magnitude=WEAK)
    ours, slow = (codes_of(backbone) > 0).double(), drawn_everywhere(backbone, 0)
    pairs = [(one.T @ one) / ROWS for one in (ours, slow)]  # the diagonal has the features themselves
    error = ((pairs[0] + pairs[1]) / ROWS).sqrt()
    assert bool(((pairs[0] - pairs[1]).abs() < 5 * error + 1e-6).all())
    told, draw = backbone.probabilities().double(), backbone._drawing
    near = 0.15 if correlation and correlation["type"] == "full" else 0.05  # nearly all is shared there
    assert bool(((pairs[1].diagonal() - told).abs() < 5 * (told / ROWS).sqrt() + near * told).all())
    apart = draw.forest.marginals(draw.probabilities * draw.magnitudes.positive())
    as_apart = bool(((pairs[1].diagonal() - apart).abs() < 5 * (apart / ROWS).sqrt() + near * apart).all())
    assert as_apart == (correlation is None), "the causes matter, or the test shows nothing"


@pytest.mark.parametrize("correlation", SHARED, ids=["independent", "low_rank", "full"])
def test_where_nothing_fires_there_are_no_codes(correlation):
    rare = {"type": "linear", "low": 1e-10, "high": 1e-9}
    backbone = make(TREES, correlation=correlation, probability=rare)
    codes = backbone.codes("train", 0, 5000)
    assert (codes.selection.n_rows, codes.values.numel()) == (5000, 0)
    assert torch.equal(next(iter(backbone.stream("activations", "train", 0, 10))).inputs, torch.zeros(10, 6))


def test_children_are_scaled_by_their_parents():
    strong = {"type": "rectified_normal", "first_mean": 3.0, "last_mean": 3.0, "std_mean": 0.3, "std_spread": 0.0}
    scaled, plain = (make(TREES | {"scale_by_parent": on}, magnitude=strong) for on in (True, False))
    with_parent, own = codes_of(scaled), codes_of(plain)
    assert torch.equal(with_parent > 0, own > 0)
    rows = own[:, 9] > 0  # feature 9 below 2 below 0
    expected = own[rows, 9] * (own[rows, 2] / 3) * (own[rows, 0] / 3)
    torch.testing.assert_close(with_parent[rows, 9], expected, rtol=1e-5, atol=1e-6)


def test_log_normal_children_keep_their_mean_below_a_parent():
    """A parent's value over its mean is one on average, so a child's is its own: exp(sigma^2 / 2)."""
    backbone = make(TREES, lognormal_sigma=0.5)
    codes = codes_of(backbone)
    values = codes[:, 2:8][codes[:, 2:8] > 0].double()  # the middle level
    mean, spread = math.exp(0.125), math.exp(0.25)
    error = spread * math.sqrt(math.exp(0.5) - 1) / math.sqrt(values.numel())
    assert float(values.mean()) == pytest.approx(mean, abs=5 * error)


def test_what_features_share_is_spread_as_standard_normals():
    """Also where there are more causes than Sobol's sequence has dimensions."""
    most = torch.quasirandom.SobolEngine.MAXDIM
    for causes, near in ((3, 0.02), (most + 1, 0.2)):
        drawn = _spread(512, causes, seed=1).double()
        assert drawn.shape == (512, causes)
        assert float(drawn[:, :3].mean(0).abs().max()) < near and float((drawn[:, :3].std(0) - 1).abs().max()) < near
        assert torch.equal(_spread(512, causes, seed=1).double(), drawn)


def test_rivals_stay_equally_often():
    keys = {"probability": {"type": "constant", "p": 0.5}}
    fired = (codes_of(make(TREES | {"compensate": False}, **keys)) > 0)[:, 2:5].sum(0).double()
    assert float((fired - fired.mean()).abs().max()) < 5 * math.sqrt(float(fired.mean()))


@pytest.mark.parametrize(("start", "count"), [(0, 1), (4095, 2), (300, 5000)])
def test_rows_do_not_depend_on_the_cut(start, count):
    backbone = make(TREES, correlation={"type": "low_rank", "rank": 2, "scale": 0.5})
    whole = torch.cat([batch.inputs for batch in backbone.stream("activations", "train", 0, 6000)])
    part = torch.cat([batch.inputs for batch in backbone.stream("activations", "train", start, count)])
    assert torch.equal(part, whole[start : start + count])


def test_a_forest_larger_than_the_world_is_refused():
    with pytest.raises(ValidationError, match="the hierarchy has 26 features, n_features is 20"):
        make(TREES, n_features=20)
