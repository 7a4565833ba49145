"""Shares of a sphere that lie close to given directions, as base-10 logarithms: in many dimensions they underflow.

A cap holds the unit vectors whose cosine with a direction is at least ``tau``. Under the soft-frozen constraint every
decoder direction stays in the cap around its start, so caps say what such a dictionary can express at all.
"""

from __future__ import annotations

import math
from typing import Final

from saebench_core.errors import InputError

__all__ = ["cosine_within_reach", "log10_cap", "log10_cap_bound", "log10_union"]

_SMALL: Final = 1e-17
_REPRESENTABLE: Final = 1e-250


def log10_cap_bound(d_in: int, tau: float) -> float:
    """Return log10 of ``exp(-d_in tau^2 / 2)``, the bound on a cap's share that the paper uses.

    Args:
        d_in: dimensions, at least 2.
        tau: smallest cosine, from 0 to 1.

    Raises:
        InputError: for values outside.

    Source: Sanity Checks for SAEs, eq. 7 to 10; Tkocz 2012.
    """
    _check(d_in, tau)
    return -d_in * tau**2 / (2 * math.log(10))


def log10_cap(d_in: int, tau: float) -> float:
    """Return log10 of the exact share of unit vectors with a cosine of at least ``tau`` with a direction.

    The share is half the regularised incomplete beta function ``I_{1 - tau^2}((d_in - 1) / 2, 1 / 2)``. Where that
    underflows, its hypergeometric series is summed, which has positive terms only.

    Args:
        d_in: dimensions, at least 2.
        tau: smallest cosine; at 1 the share is 0 and its logarithm ``-inf``, below 0 it is more than half.

    Raises:
        InputError: for values that are no cosines.
    """
    _check(d_in, tau, lowest=-1)
    if tau == 1:
        return -math.inf
    if tau < 0:
        return math.log1p(-(10 ** log10_cap(d_in, -tau))) / math.log(10)
    from scipy.special import betainc

    a, b, x = (d_in - 1) / 2, 0.5, 1 - tau**2
    if (share := float(betainc(a, b, x)) / 2) > _REPRESENTABLE:
        return math.log10(share)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    natural = a * math.log(x) + b * math.log1p(-x) - math.log(2 * a) - log_beta + math.log(_series(a, b, x))
    return natural / math.log(10)


def _series(a: float, b: float, x: float) -> float:
    """Return the sum of ``x^i (a + b)_i / (a + 1)_i`` over all i."""
    total = term = 1.0
    index = 0
    while term > _SMALL * total:
        term *= x * (a + b + index) / (a + 1 + index)
        total += term
        index += 1
    return total


def log10_union(log10_share: float, count: int) -> float:
    """Return log10 of ``count`` times a share: a bound on the share of their union, at most 0.

    Raises:
        InputError: for no cap at all.
    """
    if count < 1:
        raise InputError(f"a union needs at least one cap, got {count}")
    return min(0.0, log10_share + math.log10(count))


def cosine_within_reach(tau: float, threshold: float) -> float:
    """Return the smallest cosine of a start with a target that a direction held at ``tau`` can bring to ``threshold``.

    A direction may turn by ``arccos(tau)`` from its start, and has reached a target when it is within
    ``arccos(threshold)`` of it, so the start may be the sum of both angles away.

    Raises:
        InputError: for numbers that are no cosines.
    """
    for name, value in (("tau", tau), ("threshold", threshold)):
        if not -1 <= value <= 1:
            raise InputError(f"{name} is a cosine, from -1 to 1; got {value:g}")
    return math.cos(min(math.pi, math.acos(tau) + math.acos(threshold)))


def _check(d_in: int, tau: float, lowest: float = 0) -> None:
    if d_in < 2:
        raise InputError(f"caps need at least 2 dimensions, got {d_in}")
    if not lowest <= tau <= 1:
        raise InputError(f"caps are given for cosines from {lowest:g} to 1, got {tau:g}")
