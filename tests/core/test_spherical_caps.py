"""Shares of caps: against the beta function, against counting, and the figures of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import special

from saebench_core.errors import InputError
from saebench_core.spherical_caps import cosine_within_reach, log10_cap, log10_cap_bound, log10_union
from tests.helpers.training import normal


@pytest.mark.parametrize(
    ("d_in", "tau", "bound", "exact"),
    [
        (2304, 0.8, -320.197, -512.90),
        (100, 0.8, -13.90, -23.27),
        (4096, 0.8, -569.24, -910.58),
        (768, 0.8, -106.73, -171.90),
    ],
)
def test_figures_in_log_space(d_in, tau, bound, exact):
    assert log10_cap_bound(d_in, tau) == pytest.approx(bound, abs=0.006)
    assert log10_cap(d_in, tau) == pytest.approx(exact, abs=0.006)


def test_the_papers_union_bound():
    assert log10_union(log10_cap_bound(2304, 0.8), 73_728) == pytest.approx(math.log10(4.69) - 316, abs=2e-3)
    assert log10_union(log10_cap(2304, 0.8), 73_728) == pytest.approx(-508.03, abs=0.006)
    assert log10_union(-1.0, 3200) == 0.0


@settings(deadline=None)
@given(st.integers(2, 200), st.floats(0.001, 0.999))
def test_it_is_half_the_incomplete_beta_function_and_below_the_bound(d_in, tau):
    value = 0.5 * special.betainc((d_in - 1) / 2, 0.5, 1 - tau**2)
    if value > 1e-280:
        assert log10_cap(d_in, tau) == pytest.approx(math.log10(value), abs=1e-9)
    assert log10_cap(d_in, tau) <= log10_cap_bound(d_in, tau) + 1e-12


def test_circle_and_ball_by_hand():
    assert log10_cap(2, 0.5) == pytest.approx(math.log10(1 / 3))  # 60 degrees to each side
    assert log10_cap(3, 0.6) == pytest.approx(math.log10(0.2))  # Archimedes: half of 1 - tau
    assert log10_cap(50, 0.0) == math.log10(0.5)
    assert log10_cap(50, 1.0) == -math.inf


def test_it_is_the_share_of_random_directions():
    cosines = torch.nn.functional.normalize(normal(200_000, 6, seed=0), dim=1)[:, 0]
    share = float((cosines >= 0.5).double().mean())
    expected = 10 ** log10_cap(6, 0.5)
    assert abs(share - expected) < 4 * math.sqrt(expected / 200_000)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_reach_is_the_sum_of_two_angles(tau, threshold):
    within = cosine_within_reach(tau, threshold)
    assert within == pytest.approx(tau * threshold - math.sqrt((1 - tau**2) * (1 - threshold**2)), abs=1e-9)


def test_a_soft_frozen_direction_may_start_far_from_a_feature_it_recovers():
    assert cosine_within_reach(0.8, 0.8) == pytest.approx(0.28)
    assert cosine_within_reach(1.0, 0.8) == pytest.approx(0.8)
    small = log10_union(log10_cap(100, 0.28), 3200)
    assert small == 0.0, "in the paper's toy world every feature is within reach"
    assert log10_union(log10_cap(2304, 0.28), 73_728) == pytest.approx(-37.491, abs=1e-3)


@pytest.mark.parametrize(("d_in", "tau"), [(1, 0.5), (10, -1.1), (10, 1.5), (10, math.nan)])
def test_what_has_no_cap_is_refused(d_in, tau):
    for function in (log10_cap, log10_cap_bound):
        with pytest.raises(InputError, match="caps"):
            function(d_in, tau)
    with pytest.raises(InputError, match="cosines from 0 to 1"):
        log10_cap_bound(10, -0.1)


def test_what_is_no_cap_is_refused_in_words():
    with pytest.raises(InputError, match="at least one cap"):
        log10_union(-3.0, 0)
    with pytest.raises(InputError, match="tau is a cosine"):
        cosine_within_reach(1.2, 0.8)


@pytest.mark.parametrize(("d_in", "tau"), [(2, 0.3), (3, 0.5), (100, 0.1)])
def test_caps_beyond_the_equator_are_the_rest_of_the_sphere(d_in, tau):
    assert 10 ** log10_cap(d_in, -tau) + 10 ** log10_cap(d_in, tau) == pytest.approx(1)
    assert log10_cap(d_in, -1) == 0
    reach = cosine_within_reach(0.5, 0.8)  # below zero: most starts are within reach
    assert log10_cap(100, reach) > log10_cap(100, 0)
