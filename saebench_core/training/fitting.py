"""How many SAEs of a group fit into memory at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import torch

__all__ = ["available_bytes", "parts_that_fit", "training_bytes"]

_MATRICES: Final = 9
"""Weights, gradients, two moments of encoder and decoder, and the decoder as it was drawn."""
_PART_BUFFERS: Final = 1 << 28
_USABLE: Final = 0.8

_T = TypeVar("_T")


def training_bytes(d_in: int, d_sae: int) -> int:
    """Return what one SAE needs while it is trained, in fp32."""
    return _MATRICES * 4 * d_in * d_sae


def available_bytes(device: torch.device) -> int:
    """Return the memory that is free now: the device's, or the machine's within the limits of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), _control_group()]
    known = [value for value in found if value is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _control_group() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = ((root / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def parts_that_fit(items: Sequence[_T], each: int, shared: int, available: int) -> list[Sequence[_T]]:
    """Cut a group into parts of equal size that fit; one SAE is tried even if it may not.

    Args:
        items: members of the group.
        each: bytes of one.
        shared: bytes of what all read, such as batches.
        available: bytes that are free.
    """
    room = int(_USABLE * available) - shared - _PART_BUFFERS
    at_once = max(1, min(len(items), room // max(1, each)))
    n_parts = -(-len(items) // at_once)
    size = -(-len(items) // n_parts)
    return [items[start : start + size] for start in range(0, len(items), size)]
