"""How the process is while it works: SIGTERM is an exception, torch has so many threads."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Interruption", "termination", "threads"]


class Interruption(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); what is published stays."""


@contextmanager
def termination() -> Iterator[Callable[[], None]]:
    """Turn SIGTERM into an exception, so that half-built products are removed and the sweep is marked.

    An exception out of a signal is lost where Python has nobody to give it to (a destructor, a callback of the
    collector or of a library). So what is yielded is to be called now and then: it raises what was lost.
    """
    asked: list[type[KeyboardInterrupt]] = []

    def stop(number: int, frame: object) -> None:
        asked.append(Interruption if number == signal.SIGTERM else KeyboardInterrupt)
        raise asked[0]

    def check() -> None:
        if asked:
            raise asked[0]

    try:
        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    except ValueError:  # not the main thread: somebody else decides
        yield check
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
