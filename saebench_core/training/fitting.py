"""How many SAEs of a group fit into memory at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import torch

__all__ = ["available_bytes", "kept_bytes", "parts_that_fit", "passing_bytes"]

_KEPT: Final = 9
"""Matrices of ``d_in x d_sae`` numbers between steps: weights, gradients, two moments, the decoder as drawn."""
_KEPT_UNTRAINED: Final = 3
_PASSING: Final = 4
"""Matrices that a step makes beside them, most of all where many latents are dead; measured at 512 x 16,384."""
_PART_BUFFERS: Final = 1 << 28
_USABLE: Final = 0.8

_T = TypeVar("_T")


def kept_bytes(d_in: int, d_sae: int, trains: bool = True) -> int:
    """Return what one SAE holds between its steps, in fp32."""
    return (_KEPT if trains else _KEPT_UNTRAINED) * 4 * d_in * d_sae


def passing_bytes(d_in: int, d_sae: int) -> int:
    """Return what the SAE that takes its step needs beside what it holds; SAEs take turns."""
    return _PASSING * 4 * d_in * d_sae + _PART_BUFFERS


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
        if limit == "max":
            return None
        stat = dict(line.split() for line in (root / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))  # files read before make room
    except (OSError, ValueError):
        return None


def parts_that_fit(items: Sequence[_T], each: int, shared: int, available: int) -> list[Sequence[_T]]:
    """Cut a group into parts of equal size that fit; one SAE is tried even if it may not.

    Args:
        items: members of the group.
        each: bytes of one.
        shared: bytes of what all read, such as batches, and of the one that takes its step.
        available: bytes that are free.
    """
    room = int(_USABLE * available) - shared
    at_once = max(1, min(len(items), room // max(1, each)))
    n_parts = -(-len(items) // at_once)
    size = -(-len(items) // n_parts)
    return [items[start : start + size] for start in range(0, len(items), size)]
