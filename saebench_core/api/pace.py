"""How fast this machine is beside the one that estimates are made for, by a product that is measured once a process."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Final

import torch

from saebench_core.api.process import threads
from saebench_core.plan import NOMINAL_FLOPS

__all__ = ["pace"]

_SIZES: Final = (1024, 128, 2048)
"""Rows, inputs and latents: some 5 ms, in the shape of an encoder's product."""
_REPEATS: Final = 5


def pace(device: str, count: int | None) -> float:
    """Return how many times an estimate's seconds work takes here; 1 on devices other than a CPU.

    Args:
        device: kind of device.
        count: threads that work will have; None for as many as torch takes.
    """
    return _of_threads(count) if device == "cpu" else 1.0


@lru_cache(maxsize=8)
def _of_threads(count: int | None) -> float:
    rows, inputs, latents = _SIZES
    left, right = torch.ones(rows, inputs, device="cpu"), torch.ones(inputs, latents, device="cpu")
    found = torch.empty(rows, latents, device="cpu")
    best = float("inf")
    with threads(count):
        for _ in range(_REPEATS):
            start = time.perf_counter()
            torch.mm(left, right, out=found)
            best = min(best, time.perf_counter() - start)
    return NOMINAL_FLOPS * best / (2 * rows * inputs * latents)
