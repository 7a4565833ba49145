"""Pooled features of items, sparse or dense, and what probes ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core import SparseAutoencoder

__all__ = ["DenseFeatures", "Features", "PooledCodes", "mean_rows", "pool_codes", "store_rows"]

_CHUNK_ENTRIES: Final = 1 << 24
_ROWS_AT_ONCE: Final = 1 << 14
_FP32_BYTES: Final = 1 << 31


class Features(ABC):
    """A number for each item and feature, fp64, on the CPU."""

    @abstractmethod
    def count(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def weighted_sum(self, weights: Float[Tensor, " items"]) -> Float[Tensor, " features"]:
        """Return the sum over items, each times its weight, of every feature."""

    @abstractmethod
    def mean_active(self, items: Int[Tensor, " some"]) -> Float[Tensor, " features"]:
        """Return every feature's mean size over those of these items where it is not zero; zero if there are none."""

    @abstractmethod
    def columns(self, features: Sequence[int]) -> Float[Tensor, "items some"]:
        """Return a few features of all items, dense."""

    @abstractmethod
    def rows(self, items: Int[Tensor, " some"]) -> Any:
        """Return all features of these items as scikit-learn takes them: an array, or a sparse one."""

    def mean_difference(self, items: Int[Tensor, " some"], labels: Bool[Tensor, " some"]) -> Float[Tensor, " features"]:
        """Return ``mean_positive - mean_negative`` of every feature over these items."""
        weights = torch.zeros(self.count(), dtype=torch.float64)
        positive = labels.to(torch.float64)
        weights[items] = positive / positive.sum() - (1 - positive) / (1 - positive).sum()
        return self.weighted_sum(weights)


@dataclass(frozen=True)
class DenseFeatures(Features):
    """Features as a matrix ``(items, features)``, fp64."""

    values: Float[Tensor, "items features"]

    def count(self) -> int:
        """Return the number of items."""
        return len(self.values)

    def weighted_sum(self, weights: Float[Tensor, " items"]) -> Float[Tensor, " features"]:
        """Return the weighted sum of every feature."""
        return weights @ self.values

    def mean_active(self, items: Int[Tensor, " some"]) -> Float[Tensor, " features"]:
        """Return the mean size where a feature is not zero."""
        some = self.values[items]
        return some.abs().sum(0) / (some != 0).sum(0).clamp(min=1)

    def columns(self, features: Sequence[int]) -> Float[Tensor, "items some"]:
        """Return a few features."""
        return self.values[:, list(features)]

    def rows(self, items: Int[Tensor, " some"]) -> Any:
        """Return a numpy array."""
        return self.values[items].numpy()


@dataclass(frozen=True)
class PooledCodes(Features):
    """Mean codes of items, sparse.

    Attributes:
        items: item of each entry; entries are sorted by latent.
        latents: latent of each entry.
        values: mean code, fp64.
        bounds: entries of latent ``j`` are those from ``bounds[j]`` to ``bounds[j + 1]``.
        n_items: number of items.
    """

    items: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    bounds: Int[Tensor, " bounds"]
    n_items: int

    def count(self) -> int:
        """Return the number of items."""
        return self.n_items

    def weighted_sum(self, weights: Float[Tensor, " items"]) -> Float[Tensor, " features"]:
        """Return the weighted sum of every latent."""
        return self._summed(self.values * weights[self.items])

    def mean_active(self, items: Int[Tensor, " some"]) -> Float[Tensor, " features"]:
        """Return the mean size where a latent is not zero."""
        counted = torch.zeros(self.n_items, dtype=torch.float64)
        counted[items] = 1
        there = counted[self.items]
        return self._summed(self.values.abs() * there) / self._summed(there).clamp(min=1)

    def _summed(self, entries: Float[Tensor, " entries"]) -> Float[Tensor, " features"]:
        found = torch.bincount(self.latents, entries, minlength=len(self.bounds) - 1)
        return found.to(torch.float64)  # without a single code torch counts in whole numbers

    def columns(self, features: Sequence[int]) -> Float[Tensor, "items some"]:
        """Return a few latents, dense."""
        dense = torch.zeros(self.n_items, len(features), dtype=torch.float64)
        for place, latent in enumerate(features):
            part = slice(int(self.bounds[latent]), int(self.bounds[latent + 1]))
            dense[self.items[part], place] = self.values[part]
        return dense

    def rows(self, items: Int[Tensor, " some"]) -> Any:
        """Return a scipy array in rows."""
        from scipy.sparse import csc_array

        parts = (self.values.numpy(), self.items.numpy(), self.bounds.numpy())
        return csc_array(parts, shape=(self.n_items, len(self.bounds) - 1)).tocsr()[items.numpy()]


@torch.no_grad()
def pool_codes(
    sae: SparseAutoencoder, activations: Float[Tensor, "rows d_in"], offsets: Int[Tensor, " bounds"]
) -> PooledCodes:
    """Encode rows once and average the codes of each item; an item without rows has no codes.

    Args:
        sae: encodes on its own device.
        activations: all rows, item by item.
        offsets: first row of each item, and the end, ``(n_items + 1,)``.
    """
    n_items, at_once = len(offsets) - 1, max(1, min(64, _CHUNK_ENTRIES // sae.d_sae))
    found = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))]
    for first in range(0, n_items, at_once):
        part = offsets[first : first + at_once + 1]
        rows = activations[int(part[0]) : int(part[-1])].to(sae.device, torch.float32)
        if len(rows):
            items, latents, values = _mean_codes(sae, rows, part.diff().to(sae.device))
            found.append((items.cpu() + first, latents.cpu(), values.cpu()))
    items, latents, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = latents.argsort(stable=True)
    ends = torch.bincount(latents, minlength=sae.d_sae).cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), ends])
    return PooledCodes(items[order], latents[order], values[order].to(torch.float64), bounds, n_items)


def _mean_codes(sae: SparseAutoencoder, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return item, latent and value of the mean codes that are not zero; dense only as ``(items, d_sae)``."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
    codes = sae.encode(rows)
    sums = torch.zeros(len(counts) * sae.d_sae, device=rows.device)
    sums.index_add_(0, owner[codes.selection.rows] * sae.d_sae + codes.selection.cols, codes.values)
    means = sums.view(len(counts), sae.d_sae) / counts.clamp(min=1)[:, None]
    items, latents = means.nonzero(as_tuple=True)
    return items, latents, means[items, latents]


def store_rows(batches: Iterable[Sequence[Float[Tensor, "_ d_in"]]], limit: int = _FP32_BYTES) -> tuple[Tensor, Tensor]:
    """Return the rows of all items end to end, on the CPU, and the offsets of the items.

    Rows that a bf16 model computed are kept in bf16, which loses nothing. Others are kept in fp32, and rounded to
    bf16 only if they would take more than ``limit`` bytes.
    """
    parts: list[Tensor] = []
    counts: list[int] = [0]
    dtype, size = torch.bfloat16, 0
    for items in batches:
        rows = torch.cat(list(items)).to("cpu", torch.float32)
        if size == 0 and not torch.equal(rows.to(torch.bfloat16).to(torch.float32), rows):
            dtype = torch.float32
        size += 4 * rows.numel()
        if dtype == torch.float32 and size > limit:
            dtype, parts = torch.bfloat16, [part.to(torch.bfloat16) for part in parts]
        parts.append(rows.to(dtype))
        counts.extend(len(item) for item in items)
    return torch.cat(parts), torch.tensor(counts, dtype=torch.int64).cumsum(0)


def mean_rows(activations: Float[Tensor, "rows d_in"], offsets: Int[Tensor, " bounds"]) -> Float[Tensor, "items d_in"]:
    """Return the mean row of each item, fp64; zeros for an item without rows."""
    counts = offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    sums = torch.zeros(len(counts), activations.shape[1], dtype=torch.float64)
    for part, rows in zip(owner.split(_ROWS_AT_ONCE), activations.split(_ROWS_AT_ONCE), strict=True):  # type: ignore[no-untyped-call]
        sums.index_add_(0, part, rows.to("cpu", torch.float64))
    return sums / counts.clamp(min=1)[:, None]
