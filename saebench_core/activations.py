"""Activations of a backbone: stored once as safetensors shards or drawn again, read in order or shuffled.

Readers give a split in its fixed order. `ShuffledRows` gives training batches in the order of a seed: a
permutation of all rows where they are stored, of windows and of rows within windows where they are drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, final

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from saebench_core.errors import InputError, PluginError, StoreError
from saebench_core.interfaces.backbone import ActivationBatch, Backbone
from saebench_core.interfaces.constraint import Statistics
from saebench_core.interfaces.context import ActivationReader, Progress, Split
from saebench_core.randomness import named_generator

__all__ = ["LiveReader", "ShuffledRows", "StoredReader", "collect", "measure", "statistics_rows"]

SHARD_ROWS: Final = 1 << 16
_WINDOW_ROWS: Final = 1 << 16
_MANIFEST: Final = "manifest.json"


class RandomAccess(ActivationReader, Protocol):
    """A reader that can also give rows by their numbers within a window."""

    @property
    def window(self) -> int | None:
        """Rows that can be permuted at once; None for all."""

    def take(self, first: int, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        """Return rows ``first + order``."""


@final
@dataclass(frozen=True)
class LiveReader:
    """Rows of a backbone that draws them again at will.

    Attributes:
        backbone: prepared.
        site: place that is read.
        split: part of the data.
        rows: how many rows to give.
        d_in: their width.
        device: where batches are put.
    """

    backbone: Backbone
    site: str
    split: Split
    rows: int
    d_in: int
    device: torch.device

    @property
    def window(self) -> int:
        """Rows are permuted within windows of this size."""
        return _WINDOW_ROWS

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the rows in order."""
        yield from _rebatch(self.backbone, self.site, self.split, self.rows, batch_size, self.device)

    def take(self, first: int, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        """Draw the window that starts at ``first`` and return its rows in the given order."""
        parts = [_inputs(batch) for batch in self.backbone.stream(self.site, self.split, first, order.numel())]
        return torch.cat(parts).to(self.device)[order.to(self.device)]


@final
class StoredReader:
    """Rows of a stored product, mapped into memory."""

    def __init__(self, path: Path, device: torch.device, rows: int | None = None) -> None:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        self.rows = min(int(manifest["rows"]), rows) if rows is not None else int(manifest["rows"])
        self.d_in = int(manifest["d_in"])
        self.device = device
        self.window: int | None = None
        self._shards: list[Tensor] = []
        for name in manifest["shards"]:
            with safe_open(path / name, framework="pt") as shard:
                self._shards.append(shard.get_tensor("activations"))

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the rows in order, fp32."""
        for start in range(0, self.rows, batch_size):
            stop = min(self.rows, start + batch_size)
            yield self.take(0, torch.arange(start, stop, device="cpu"))

    def take(self, first: int, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        """Return rows by number, fp32."""
        numbers = order + first
        if len(self._shards) == 1:
            return self._shards[0][numbers].to(self.device, torch.float32)
        out = torch.empty(numbers.numel(), self.d_in, dtype=torch.float32, device="cpu")
        shard = numbers // SHARD_ROWS
        for index in torch.unique(shard).tolist():
            mine = shard == index
            out[mine] = self._shards[index][numbers[mine] - index * SHARD_ROWS].float()
        return out.to(self.device)


def collect(backbone: Backbone, site: str, split: Split, rows: int, folder: Path, progress: Progress) -> None:
    """Store up to ``rows`` rows of a split as safetensors shards with a manifest.

    Values are kept in bf16 where that loses nothing (a backbone that runs in bf16), else in fp32.

    Raises:
        StoreError: if the split gives no row.
    """
    blocks = _rebatch(backbone, site, split, rows, SHARD_ROWS, torch.device("cpu"))
    manifest = _write_shards(blocks, folder, lambda done: progress(f"activations {split}", done, rows))
    if not manifest["rows"]:
        raise StoreError(f"the split {split} has no activations at {site}")
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _write_shards(blocks: Iterator[Tensor], folder: Path, told: Callable[[int], None]) -> dict[str, Any]:
    """Write blocks of rows; shards are in bf16 for as long as that loses nothing, each says its own format."""
    shards: list[str] = []
    written = width = 0
    for index, block in enumerate(blocks):
        exact = torch.equal(block.bfloat16().float(), block)
        name = f"shard-{index:05d}.safetensors"
        save_file({"activations": (block.bfloat16() if exact else block).contiguous()}, folder / name)
        shards.append(name)
        written, width = written + block.shape[0], block.shape[1]
        told(written)
    return {"rows": written, "d_in": width, "shards": shards}


def _rebatch(
    backbone: Backbone, site: str, split: Split, rows: int, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Cut a stream into batches of one size; the last may be smaller."""
    waiting: list[Tensor] = []
    held = 0
    for batch in backbone.stream(site, split, 0, rows):
        waiting.append(_inputs(batch).to(device))
        held += batch.inputs.shape[0]
        while held >= batch_size:
            joined = torch.cat(waiting)
            yield joined[:batch_size]
            waiting, held = [joined[batch_size:]], held - batch_size
    if held:
        yield torch.cat(waiting)


def _inputs(batch: ActivationBatch) -> Tensor:
    """Return the rows; targets of their own are refused rather than passed over.

    Raises:
        PluginError: if the targets are not the inputs.
    """
    if batch.targets is not batch.inputs:
        raise PluginError("the backbone gives targets that are not its inputs; only autoencoders are trained")
    return batch.inputs


def statistics_rows(d_in: int) -> int:
    """Return how many rows statistics are taken from at least."""
    return max(50_000, 20 * d_in)


def measure(reader: ActivationReader, rows: int) -> Statistics:
    """Return statistics of the first ``rows`` rows, accumulated in fp64."""
    total = torch.zeros(reader.d_in, dtype=torch.float64, device="cpu")
    second = torch.zeros(reader.d_in, reader.d_in, dtype=torch.float64, device="cpu")
    seen = 0
    for batch in reader.batches(8192):
        wide = batch[: rows - seen].to("cpu", torch.float64)
        total += wide.sum(0)
        second += wide.T @ wide
        seen += wide.shape[0]
        if seen >= rows:
            break
    mean = total / seen
    covariance = second / seen - torch.outer(mean, mean)
    return Statistics(seen, mean, float(second.diagonal().sum()) / seen, covariance)


@final
class ShuffledRows:
    """Training batches in the order of a seed.

    Attributes:
        order_sha256: hash over the source of the rows and the numbers of all rows given so far.
    """

    def __init__(
        self, reader: RandomAccess, available: int | None, total: int, batch_size: int, seed: int, source: str = ""
    ) -> None:
        self.rows = total if available is None else min(available, total)
        if self.rows < batch_size:
            raise InputError(f"there are {self.rows} training rows, less than one batch of {batch_size}")
        self.reader = reader
        self.total = total
        self.batch_size = batch_size
        self.seed = seed
        self.order_sha256 = hashlib.sha256(f"{source}/{self.rows}/{total}/{batch_size}".encode()).hexdigest()

    def batches(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield ``total / batch_size`` batches; rows come again, newly permuted, when they run out."""
        for numbers, values in self._cuts(read=True):
            yield self.reader.take(0, numbers) if values is None else values

    def skip(self) -> None:
        """Follow the order without reading a row, for the hash alone."""
        for _ in self._cuts(read=False):
            continue

    def _cuts(self, read: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the row numbers of every batch, with the rows where windows are read whole."""
        left, steps = _Remainder(), self.total // self.batch_size
        windowed = read and self.reader.window is not None
        for first, order in self._orders():
            rows = self.reader.take(first, order) if windowed else None
            for numbers, values in left.cut(first, order, rows, self.batch_size):
                digest = hashlib.sha256(self.order_sha256.encode())
                digest.update(numbers.numpy().tobytes())
                self.order_sha256 = digest.hexdigest()
                yield numbers, values
                steps -= 1
                if steps == 0:
                    return

    def _orders(self) -> Iterator[tuple[int, Int[Tensor, " rows"]]]:
        """Yield (first row, order within) of window after window, epoch after epoch."""
        window = self.reader.window or self.rows
        starts = list(range(0, self.rows, window))
        epoch = 0
        while True:
            generator = named_generator(self.seed, "batch order", epoch)
            for index in torch.randperm(len(starts), generator=generator, device="cpu").tolist():
                size = min(window, self.rows - starts[index])
                yield starts[index], torch.randperm(size, generator=generator, device="cpu")
            epoch += 1


@final
class _Remainder:
    """Joins what is left of one window with the next, so that every batch is full."""

    def __init__(self) -> None:
        self.numbers: Tensor | None = None
        self.values: Tensor | None = None

    def cut(
        self, first: int, order: Tensor, values: Tensor | None, size: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        numbers = order + first
        if self.numbers is not None:
            numbers = torch.cat([self.numbers, numbers])
            values = torch.cat([self.values, values]) if values is not None and self.values is not None else None
        full = numbers.numel() // size * size
        for start in range(0, full, size):
            part = slice(start, start + size)
            yield numbers[part], None if values is None else values[part]
        self.numbers, self.values = numbers[full:], None if values is None else values[full:]
