"""How the process is while it works: SIGTERM is an exception, torch has so many threads."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interruption", "termination", "threads"]


class Interruption(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); what is published stays."""


@contextmanager
def termination() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that half-built products are removed and the sweep is marked."""

    def stop(number: int, frame: object) -> None:
        raise Interruption

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: somebody else decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Give torch that many threads for a while; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
