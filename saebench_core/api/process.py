"""How the process is while it works: SIGTERM is an exception, numerical libraries have so many threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

__all__ = ["Interruption", "termination", "threads"]

COUNTS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Where libraries that are being loaded look how many threads they have."""


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
    """Give torch and the numerical libraries beside it that many threads for a while; None leaves them as they are.

    Torch's number is its own: linear algebra of numpy, scipy and scikit-learn would still take every core. What is
    first loaded meanwhile reads its number from the environment, and keeps it.
    """
    if count is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count), _environment(dict.fromkeys(COUNTS, str(count))):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
