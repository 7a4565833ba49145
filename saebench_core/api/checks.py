"""What is refused before a run starts: a device that is not there, a disk that is too full."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Final

from saebench_core.api.opening import Opened, existing
from saebench_core.errors import InputError, InsufficientSpaceError
from saebench_core.plan import Task

__all__ = ["check_device", "check_space"]

_SPACE_MARGIN: Final = 1.1


def check_device(name: str) -> None:
    """Refuse to start on a device that this machine does not have.

    Raises:
        InputError: with what to do.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise InputError(f"runtime.device: {name} is not available on this machine; use auto or cpu")


def check_space(opened: Opened, waiting: Sequence[Task]) -> None:
    """Refuse to start where the disk cannot hold what the plan expects.

    Raises:
        InsufficientSpaceError: with both numbers.
    """
    expected = opened.plan.total(waiting)
    needed = int((expected.disk_bytes + expected.scratch_bytes) * _SPACE_MARGIN)
    free = shutil.disk_usage(existing(opened.workdir)).free
    if needed > free:
        raise InsufficientSpaceError(
            f"the plan needs {needed / 1e9:.1f} GB below {opened.workdir}, {free / 1e9:.1f} GB are free; "
            "choose another workdir, fewer tokens, or fewer cells (`only`)"
        )
