"""How fast products are on this machine, which is what estimates of a plan go by."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Final

import torch

from saebench_core.api.process import threads
from saebench_core.plan import NOMINAL, Machine

__all__ = ["measured"]

_SIZES: Final = (1024, 128, 2048)
"""Rows, inputs and latents: a few ms, in the shape of an encoder's product."""
_REPEATS: Final = 8


def measured(device: str, count: int | None) -> Machine:
    """Return what estimates are to go by; on devices other than a CPU the nominal machine.

    Args:
        device: kind of device.
        count: threads that work will have; None for as many as torch takes.
    """
    if device != "cpu":
        return NOMINAL
    return Machine(_thread_flops(), torch.get_num_threads() if count is None else count)


@lru_cache(maxsize=1)
def _thread_flops() -> float:
    """Measure one thread, by the time that it computes: what others do with the cores counts little."""
    rows, inputs, latents = _SIZES
    left, right = torch.ones(rows, inputs, device="cpu"), torch.ones(inputs, latents, device="cpu")
    found = torch.empty(rows, latents, device="cpu")
    best = float("inf")
    with threads(1):
        for _ in range(_REPEATS):
            start = time.process_time()
            torch.mm(left, right, out=found)
            best = min(best, time.process_time() - start)
    return 2 * rows * inputs * latents / max(best, 1e-6)
