"""The two-window shuffle of streamed rows: memory is bounded, and going on needs two windows read again, no buffer.

Windows of the source are read in permuted order. Each is divided at random into an early and a late half; a pool is
the early half of one window and the late half of the one before. In memory are the two halves in use, the late half
that waits for the next pool, and the window that is read ahead: five halves at most.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saebench_core.activations.ahead import Stopped
from saebench_core.activations.pools import Gather, Pool
from saebench_core.activations.readers import RandomAccess
from saebench_core.errors import StoreError
from saebench_core.randomness import named_generator

__all__ = ["Mixer"]


@final
class _Window:
    """Numbers of a window's rows, and their values once read.

    Attributes:
        first: number of the first row in the source.
        early: which rows are in the early half, before any is left out.
        values: early and late rows, None where not read or already handed on.
    """

    def __init__(self, first: int, early: Bool[Tensor, " rows"]) -> None:
        self.first = first
        self.early = early
        self.values: list[Tensor | None] = [None, None]

    def numbers(self, late: bool, kept: int) -> Int[Tensor, " rows"]:
        """Return the numbers of the rows of a half, given how many rows the window has."""
        mask = self.early[:kept]
        return (~mask if late else mask).nonzero().squeeze(1) + self.first

    def hand_over(self, late: bool) -> Tensor | None:
        """Return the rows of a half, if read, and keep them no longer."""
        values, self.values[late] = self.values[late], None
        return values


@final
class Mixer:
    """Makes the pools of a streamed source.

    Args:
        reader: rows by their numbers.
        rows: rows of an epoch, before any is left out.
        buffer_rows: rows that may be held at once.
        seed: of the order.
        exact: the reader leaves out no row.
        kept: rows of each window that was read before, by number; what is learnt is added.
    """

    def __init__(
        self, reader: RandomAccess, rows: int, buffer_rows: int, seed: int, exact: bool, kept: dict[int, int]
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.window = max(1, buffer_rows * 2 // 5)
        self.seed = seed
        self.exact = exact
        self.kept = kept

    def pools(self, wanted: int | None, stop: threading.Event) -> Iterator[Pool]:
        """Yield pools, epoch after epoch.

        Args:
            wanted: position in the order from which on rows are needed; None if never. Where windows must be
                read to know how many rows they have, those needed are kept.
            stop: ends reading.

        Raises:
            StoreError: if the source has no rows.
        """
        count = -(-self.rows // self.window)
        position = epoch = 0
        while True:
            before, previous = position, cast(_Window | None, None)
            generator = named_generator(self.seed, "batch order", "windows", epoch)
            order: list[int | None] = [*torch.randperm(count, generator=generator, device="cpu").tolist()]
            for place, number in enumerate([*order, None] if count > 1 else order):
                current = None if number is None else self._window(epoch, number, whole=count == 1)
                for window in (previous, current):
                    if window is not None and self._size(window) is None:
                        ahead = wanted is not None and position + self.window > wanted
                        self._read(window, stop, keep=ahead)
                pool = self._pool(previous, current, epoch, place, stop)
                position += pool.numbers.numel()
                yield pool
                if current is not None:
                    current.hand_over(late=False)
                previous = current
            if position == before:
                raise StoreError("the train split gives no row")
            epoch += 1

    def _window(self, epoch: int, number: int, whole: bool) -> _Window:
        first = number * self.window
        size = min(self.window, self.rows - first)
        early = torch.ones(size, dtype=torch.bool, device="cpu")
        if not whole:
            generator = named_generator(self.seed, "batch order", "halves", epoch, number)
            early[torch.randperm(size, generator=generator, device="cpu")[size // 2 :]] = False
        return _Window(first, early)

    def _size(self, window: _Window) -> int | None:
        """Return how many rows a window has, if that is known."""
        return window.early.numel() if self.exact else self.kept.get(window.first // self.window)

    def _pool(
        self, previous: _Window | None, current: _Window | None, epoch: int, place: int, stop: threading.Event
    ) -> Pool:
        halves = [(window, late) for window, late in ((previous, True), (current, False)) if window is not None]
        numbers = torch.cat([window.numbers(late, self._size(window) or 0) for window, late in halves])
        generator = named_generator(self.seed, "batch order", "pool", epoch, place)
        order = torch.randperm(numbers.numel(), generator=generator, device="cpu")

        def fill() -> Gather:
            return _gather([self._half(window, late, stop) for window, late in halves], order)

        return Pool(numbers[order], epoch, fill)

    def _half(self, window: _Window, late: bool, stop: threading.Event) -> Tensor:
        values = window.hand_over(late)
        if values is None:
            self._read(window, stop, keep=True)
            values = window.hand_over(late)
            if late:
                window.hand_over(late=False)  # it was used before
        if values is None:
            raise StoreError("a window was read and is not there")
        return values

    def _read(self, window: _Window, stop: threading.Event, keep: bool) -> None:
        """Read a window, learn how many rows it has, and keep its halves if asked to.

        Raises:
            Stopped: if nobody waits for it any more.
            StoreError: if it has not the number of rows that it had before.
        """
        size, seen = window.early.numel(), 0
        parts: list[_Half] = [_Half(int(window.early.sum())), _Half(size - int(window.early.sum()))]
        for rows in self.reader.span(window.first, size):
            if stop.is_set():
                raise Stopped
            early = window.early[seen : seen + rows.shape[0]]
            seen += rows.shape[0]
            if keep and early.numel() == rows.shape[0]:
                parts[0].add(rows[early.to(rows.device)])
                parts[1].add(rows[~early.to(rows.device)])
        known = self._size(window)
        if seen > size or (known is not None and seen != known):
            raise StoreError(
                f"{seen} rows came where {size if known is None else known} were expected: the backbone "
                "does not give the same rows each time"
            )
        self.kept[window.first // self.window] = seen
        if keep:
            window.values = [half.values(self.reader.d_in) for half in parts]


@final
class _Half:
    """Rows of a half as they come: one block of memory, written once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.filled = 0
        self._block: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        if self._block is None:
            self._block = torch.empty(self.size, rows.shape[1], dtype=rows.dtype, device=rows.device)
        self._block[self.filled : self.filled + rows.shape[0]] = rows
        self.filled += rows.shape[0]

    def values(self, width: int) -> Tensor:
        return torch.empty(0, width, device="cpu") if self._block is None else self._block[: self.filled]


def _gather(halves: list[Tensor], order: Int[Tensor, " rows"]) -> Gather:
    """Return what gives the rows of a pool by place; the halves are not copied together for it."""
    if len(halves) == 1:
        return lambda part: halves[0][order[part].to(halves[0].device)]
    bound = halves[0].shape[0]

    def gather(part: slice) -> Tensor:
        index = order[part]
        out = torch.empty(index.numel(), halves[1].shape[1], dtype=halves[1].dtype, device=halves[1].device)
        for half, mine, shift in ((halves[0], index < bound, 0), (halves[1], index >= bound, bound)):
            places = mine.nonzero().squeeze(1)
            out[places.to(out.device)] = half[(index[places] - shift).to(half.device)]
        return out

    return gather
