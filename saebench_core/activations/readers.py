"""Readers: a split of a backbone in its fixed order, drawn again or mapped from shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from saebench_core.activations.cutting import inputs_of, rebatch
from saebench_core.activations.storage import TENSOR, Manifest, Shard, damaged_shards, missing_shards
from saebench_core.errors import StoreError
from saebench_core.interfaces.backbone import Backbone
from saebench_core.interfaces.context import ActivationReader, Split

__all__ = ["LiveReader", "RandomAccess", "StoredReader"]

WINDOW_ROWS: Final = 1 << 16
"""Rows that are permuted together where they are drawn again."""


class RandomAccess(ActivationReader, Protocol):
    """A reader that can also give rows by their numbers, or a run of rows in order."""

    @property
    def window(self) -> int | None:
        """Rows that can be permuted at once; None for all."""

    def take(self, first: int, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        """Return rows ``first + order``."""

    def span(self, first: int, count: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield the rows numbered ``first`` to ``first + count``, less those that the backbone leaves out."""


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
        return WINDOW_ROWS

    @property
    def exact(self) -> bool:
        """No row is ever left out."""
        return self.backbone.describe().regenerates

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the rows in order."""
        yield from rebatch(self.backbone, self.site, self.split, self.rows, batch_size, self.device)

    def take(self, first: int, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        """Draw the window that starts at ``first`` and return its rows in the given order."""
        return torch.cat(list(self.span(first, order.numel())))[order.to(self.device)]

    def span(self, first: int, count: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield a run of rows as the backbone gives them."""
        yield from inputs_of(self.backbone, self.site, self.split, first, count, self.device)


@final
class StoredReader:
    """Rows of stored shards, mapped into memory.

    Attributes:
        path: folder of the shards.
        manifest: what it holds.
        rows: how many rows are given.
        d_in: their width.
        device: where batches are put.
        window: None; any row can be read at any time.
        exact: True; no row is ever left out.
    """

    def __init__(self, path: Path, device: torch.device, rows: int | None = None) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        self.rows = self.manifest.rows if rows is None else min(self.manifest.rows, rows)
        self.d_in = self.manifest.d_in
        self.device = device
        self.window: int | None = None
        self.exact = True
        if wrong := missing_shards(path, self.manifest):
            raise StoreError(f"{path}: missing, or not of the size that the manifest states: {', '.join(wrong)}")
        self._shards = [self._map(shard) for shard in self.manifest.shards]
        self._ends = torch.tensor([len(shard) for shard in self._shards], device="cpu").cumsum(0)

    def _map(self, shard: Shard) -> Tensor:
        with safe_open(self.path / shard.file, framework="pt") as opened:
            if TENSOR not in opened.keys():  # noqa: SIM118 - a safetensors file is no mapping
                raise StoreError(f"{self.path / shard.file} has no tensor {TENSOR!r}")
            values: Tensor = opened.get_tensor(TENSOR)
        if values.shape != (shard.rows, self.d_in):
            wanted = (shard.rows, self.d_in)
            raise StoreError(f"{self.path / shard.file}: expected the shape {wanted}, found {tuple(values.shape)}")
        return values

    def verify(self) -> list[str]:
        """Read every shard and return the names of those whose hash is not the manifest's."""
        return damaged_shards(self.path, self.manifest)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the rows in order, fp32."""
        return self._runs(0, self.rows, batch_size)

    def span(self, first: int, count: int) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield a run of rows, fp32."""
        return self._runs(first, min(self.rows, first + count), 8192)

    def _runs(self, first: int, last: int, size: int) -> Iterator[Tensor]:
        for start in range(first, last, size):
            yield self.take(0, torch.arange(start, min(last, start + size), device="cpu"))

    def take(self, first: int, order: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        """Return rows by number, fp32."""
        numbers = order + first
        if len(self._shards) == 1:
            return self._shards[0][numbers].to(self.device, torch.float32)
        out = torch.empty(numbers.numel(), self.d_in, dtype=torch.float32, device="cpu")
        ascending, places = numbers.sort()
        bounds = [0, *torch.searchsorted(ascending, self._ends).tolist()]
        for index, shard in enumerate(self._shards):
            low, high = bounds[index], bounds[index + 1]
            if low < high:
                begin = int(self._ends[index]) - len(shard)
                out[places[low:high]] = shard[ascending[low:high] - begin].float()
        return out.to(self.device)
