"""Training batches in the order of a seed, from any batch on.

The order is a sequence of *pools*, permuted one by one: all rows where they are stored; windows in permuted order
where they are drawn again; and where they are streamed, half of one window with half of the one before, so that
neighbours mix and no buffer has to be kept to go on later.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core.activations.ahead import prefetch
from saebench_core.activations.mixing import Mixer
from saebench_core.activations.pools import Gather, Pool
from saebench_core.activations.readers import RandomAccess
from saebench_core.errors import InputError
from saebench_core.randomness import named_generator

__all__ = ["ShuffledRows"]


class _Filled(NamedTuple):
    """A pool, and its rows by place where they are needed."""

    pool: Pool
    gather: Gather | None


class _Batch(NamedTuple):
    """A batch of an order: the hash up to it, whether rows in it have come before, and its rows where needed."""

    sha256: str
    repeated: bool
    values: Tensor | None


@final
class ShuffledRows:
    """Training batches in the order of a seed.

    Attributes:
        rows: rows that are numbered; a backbone may leave out some of those that are streamed.
        total: rows that are given.
        batch_size: rows of a batch.
        order_sha256: hash over the source of the rows and the numbers of all rows given so far.
        repeated: whether a row given so far had come before.
        kept_rows: rows that streamed windows were found to have, by number of the window. Where a backbone leaves
            out rows, a checkpoint that keeps this saves reading the windows before it again to count them.
    """

    def __init__(
        self,
        reader: RandomAccess,
        available: int | None,
        total: int,
        batch_size: int,
        seed: int,
        source: str = "",
        buffer_rows: int | None = None,
        exact: bool = False,
        kept_rows: dict[int, int] | None = None,
    ) -> None:
        """Make the order.

        Args:
            reader: rows of the train split.
            available: how many there are; None if they never end.
            total: rows to give.
            batch_size: rows of a batch.
            seed: of the order.
            source: what the rows are, for the hash.
            buffer_rows: rows that are held at once where rows are streamed; None where all can be permuted.
            exact: no row is ever left out by the reader.
            kept_rows: shared with other orders of the same windows, so that none counts what another has counted.

        Raises:
            InputError: if there is less than one batch.
        """
        self.rows = total if available is None else min(available, total)
        if self.rows < batch_size:
            raise InputError(f"there are {self.rows} training rows, less than one batch of {batch_size}")
        self.reader = reader
        self.total = total
        self.batch_size = batch_size
        self.seed = seed
        self.buffer_rows = buffer_rows
        self.exact = exact
        self.kept_rows: dict[int, int] = {} if kept_rows is None else kept_rows
        self.repeated = False
        mode = "" if buffer_rows is None else f"/{buffer_rows}"
        self._start = hashlib.sha256(f"{source}/{self.rows}/{total}/{batch_size}{mode}".encode()).hexdigest()
        self.order_sha256 = self._start

    @property
    def steps(self) -> int:
        """Number of batches."""
        return self.total // self.batch_size

    def batches(self, start: int = 0) -> Generator[Float[Tensor, "rows d_in"], None, None]:
        """Yield ``total / batch_size`` batches; rows come again, newly permuted, when they run out.

        A thread reads ahead: the next window while one is in use, or the next batches where rows are stored.

        Args:
            start: number of the first batch to give. The order up to it is followed without reading its rows, so
                that the rest is what it would have been, hash and all.
        """
        stop = threading.Event()
        filled = self._filled(start, stop)
        source: Generator[Any, None, None]
        if self.buffer_rows is None and self.reader.window is None:
            batches = source = prefetch(self._cut(filled, start), 2, stop)
        else:
            source = prefetch(filled, 1, stop)
            batches = self._cut(source, start)
        with closing(source):
            for batch in batches:
                self._follow(batch)
                if batch.values is not None:
                    yield batch.values

    def skip(self) -> None:
        """Follow the order without reading a row, for the hash alone."""
        for batch in self._cut(self._filled(self.steps, threading.Event()), self.steps):
            self._follow(batch)

    def _follow(self, batch: _Batch) -> None:
        self.order_sha256, self.repeated = batch.sha256, batch.repeated

    def _filled(self, start: int, stop: threading.Event) -> Iterator[_Filled]:
        """Yield the pools in order, filled where a batch from ``start`` on needs them, and none after the last."""
        wanted, last, position = start * self.batch_size, self.steps * self.batch_size, 0
        for pool in self._pools(wanted if start < self.steps else None, stop):
            position += pool.numbers.numel()
            needed = start < self.steps and position > wanted
            yield _Filled(pool, pool.fill() if needed else None)
            if position >= last:
                return

    def _pools(self, wanted: int | None, stop: threading.Event) -> Iterator[Pool]:
        if self.buffer_rows is None:
            return self._permuted()
        return Mixer(self.reader, self.rows, self.buffer_rows, self.seed, self.exact, self.kept_rows).pools(
            wanted, stop
        )

    def _permuted(self) -> Iterator[Pool]:
        """Yield windows in permuted order, epoch after epoch; all rows are one window where they are stored."""
        window = self.reader.window or self.rows
        starts = list(range(0, self.rows, window))
        epoch = 0
        while True:
            generator = named_generator(self.seed, "batch order", epoch)
            for index in torch.randperm(len(starts), generator=generator, device="cpu").tolist():
                size = min(window, self.rows - starts[index])
                order = torch.randperm(size, generator=generator, device="cpu")
                yield Pool(order + starts[index], epoch, self._fill(starts[index], order))
            epoch += 1

    def _fill(self, first: int, order: Int[Tensor, " rows"]) -> Callable[[], Gather]:
        """Return what reads a window: whole where it is drawn again, batch by batch where it is stored."""
        reader = self.reader
        if reader.window is None:
            return lambda: lambda part: reader.take(first, order[part])
        return lambda: reader.take(first, order).__getitem__

    def _cut(self, pools: Iterator[_Filled], start: int) -> Generator[_Batch, None, None]:
        """Cut pools into full batches; what one pool leaves goes on with the next."""
        left, sha256, done = _Left(), self._start, 0
        for pool, gather in pools:
            size = pool.numbers.numel()
            first = 0
            while left.count + size - first >= self.batch_size:
                part = slice(first, first + self.batch_size - left.count)
                numbers, values = left.join(pool.numbers[part], gather(part) if gather and done >= start else None)
                sha256 = hashlib.sha256(sha256.encode() + numbers.numpy().tobytes()).hexdigest()
                yield _Batch(sha256, pool.epoch > 0, values if done >= start else None)
                first, done = part.stop, done + 1
                if done == self.steps:
                    return
            if first < size:
                part = slice(first, size)
                left.keep(pool.numbers[part], gather(part) if gather else None)


@final
class _Left:
    """Rows that wait for the rest of their batch: copies, so that no window stays in memory for them."""

    def __init__(self) -> None:
        self._numbers: list[Tensor] = []
        self._values: list[Tensor] = []

    @property
    def count(self) -> int:
        return sum(part.numel() for part in self._numbers)

    def keep(self, numbers: Tensor, values: Tensor | None) -> None:
        self._numbers.append(numbers.clone())
        if values is not None:
            self._values.append(values.clone())

    def join(self, numbers: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self._numbers:
            numbers = torch.cat([*self._numbers, numbers])
            values = None if values is None else torch.cat([*self._values, values])
            self._numbers, self._values = [], []
        return numbers, values
