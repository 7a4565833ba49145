"""Work ahead: a thread prepares what comes next while the consumer is busy with what it has."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar, final

import torch

__all__ = ["Stopped", "prefetch"]

T = TypeVar("T")


class Stopped(Exception):
    """The consumer has left; raised within the producer to end it."""


@final
class _Ready(NamedTuple, Generic[T]):
    """What the thread hands over: an item, or how it ended (an error, or neither)."""

    items: tuple[T, ...]
    error: BaseException | None = None


def prefetch(items: Iterator[T], depth: int, stop: threading.Event) -> Generator[T, None, None]:
    """Yield the items of an iterator that runs in a thread, in its order.

    The consumer's gradient mode holds in the thread too. When the consumer leaves, the thread is ended before this
    generator is, so that nothing runs on behind its back.

    Args:
        items: touched by the thread alone.
        depth: items that are ready or in preparation beside the one in use.
        stop: set when the consumer leaves; long work looks at it and raises `Stopped`.

    Raises:
        BaseException: whatever the iterator raises, at the place where its item would have come.
    """
    ready: SimpleQueue[_Ready[T]] = SimpleQueue()
    room = threading.Semaphore(depth)
    arguments = (items, ready, room, stop, torch.is_grad_enabled())
    thread = threading.Thread(target=_produce, args=arguments, name="saebench-ahead", daemon=True)
    thread.start()
    try:
        while True:
            got = ready.get()
            if got.error is not None:
                raise got.error
            if not got.items:
                return
            room.release()
            yield got.items[0]
    finally:
        stop.set()
        room.release()
        thread.join()


def _produce(
    items: Iterator[T], ready: SimpleQueue[_Ready[T]], room: threading.Semaphore, stop: threading.Event, gradients: bool
) -> None:
    try:
        with torch.set_grad_enabled(gradients):
            while True:
                room.acquire()
                if stop.is_set():
                    return
                item = next(items, None)
                if item is None:
                    break
                ready.put(_Ready((item,)))
                del item  # the consumer alone keeps it alive
    except Stopped:
        return
    except BaseException as error:  # it belongs to the consumer
        ready.put(_Ready((), error))
        return
    ready.put(_Ready(()))
