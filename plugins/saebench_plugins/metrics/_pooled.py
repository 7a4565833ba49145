"""Activations of items, and their mean codes as a sparse matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core import SparseAutoencoder

__all__ = ["mean_rows", "pool_codes", "store_rows"]

_CHUNK_ENTRIES: Final = 1 << 24
_ROWS_AT_ONCE: Final = 1 << 14
_FP32_BYTES: Final = 1 << 31


@torch.no_grad()
def pool_codes(sae: SparseAutoencoder, activations: Float[Tensor, "rows d_in"], offsets: Int[Tensor, " bounds"]) -> Any:
    """Encode rows once and average the codes of each item; an item without rows has no codes.

    Args:
        sae: encodes on its own device.
        activations: all rows, item by item.
        offsets: first row of each item, and the end, ``(n_items + 1,)``.

    Returns:
        scipy's sparse array in rows, ``(n_items, d_sae)``, fp64.
    """
    from scipy.sparse import csr_array

    n_items, at_once = len(offsets) - 1, max(1, min(64, _CHUNK_ENTRIES // sae.d_sae))
    counts = [torch.zeros(1, dtype=torch.int64, device="cpu")]
    latents = [torch.zeros(0, dtype=torch.int32, device="cpu")]
    values = [torch.zeros(0, dtype=torch.float64, device="cpu")]
    for first in range(0, n_items, at_once):
        part = offsets[first : first + at_once + 1]
        rows = activations[int(part[0]) : int(part[-1])].to(sae.device, torch.float32)
        means = _mean_codes(sae, rows, part.diff().to(sae.device))
        items, cols = means.nonzero(as_tuple=True)
        counts.append(torch.bincount(items, minlength=len(part) - 1).cpu())
        latents.append(cols.to("cpu", torch.int32))
        values.append(means[items, cols].to("cpu", torch.float64))
    bounds = torch.cat(counts).cumsum(0)
    if int(bounds[-1]) <= torch.iinfo(torch.int32).max:
        bounds = bounds.to(torch.int32)  # scipy keeps both indices in the wider of their types
    parts = (torch.cat(values).numpy(), torch.cat(latents).numpy(), bounds.numpy())
    return csr_array(parts, shape=(n_items, sae.d_sae))


def _mean_codes(
    sae: SparseAutoencoder, rows: Float[Tensor, "rows d_in"], counts: Int[Tensor, " items"]
) -> Float[Tensor, "items d_sae"]:
    """Return the mean codes of a few items, dense."""
    sums = torch.zeros(len(counts) * sae.d_sae, device=sae.device)
    if len(rows):
        owner = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
        codes = sae.encode(rows)
        sums.index_add_(0, owner[codes.selection.rows] * sae.d_sae + codes.selection.cols, codes.values)
    return sums.view(len(counts), sae.d_sae) / counts.clamp(min=1)[:, None]


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
    return torch.cat(parts), torch.tensor(counts, dtype=torch.int64, device="cpu").cumsum(0)


def mean_rows(activations: Float[Tensor, "rows d_in"], offsets: Int[Tensor, " bounds"]) -> Float[Tensor, "items d_in"]:
    """Return the mean row of each item, fp64; zeros for an item without rows."""
    counts = offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
    sums = torch.zeros(len(counts), activations.shape[1], dtype=torch.float64, device="cpu")
    for part, rows in zip(owner.split(_ROWS_AT_ONCE), activations.split(_ROWS_AT_ONCE), strict=True):  # type: ignore[no-untyped-call]
        sums.index_add_(0, part, rows.to("cpu", torch.float64))
    return sums / counts.clamp(min=1)[:, None]
