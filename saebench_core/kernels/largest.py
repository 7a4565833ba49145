"""The largest among entries whose values are known: of the batch, or of every row."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from saebench_core.kernels.lists import kth_largest
from saebench_core.kernels.selection import Selected

__all__ = ["largest", "largest_of_rows", "topk_mask"]

_TABLE_ENTRIES: Final = 1 << 20
"""Entries of the tables that rows are sorted in."""


def topk_mask(pre: Tensor, k: int) -> Tensor:
    """Return where the k largest entries of every row are, in a dense matrix."""
    mask = torch.zeros_like(pre, dtype=torch.bool)
    return mask.scatter_(1, pre.topk(k, dim=1, sorted=False).indices, True)


def largest(found: Selected, count: int) -> Selected:
    """Return the entries not below the ``count``-th largest."""
    if found.pre.numel() <= count:
        return found
    return found.where(found.pre >= kth_largest(found.pre, count))


def largest_of_rows(found: Selected, k: int) -> Selected:
    """Return the k largest entries of each row."""
    selection = found.selection
    widths = selection.bounds.diff()
    widest = int(widths.max()) if selection.n_rows else 0
    if widest <= k:
        return found
    size = max(1, _TABLE_ENTRIES // widest)
    tables = [_padded(found, widest, slice(first, first + size)) for first in range(0, selection.n_rows, size)]
    least = torch.cat([kth_largest(table, k) for table in tables])
    kept = found.pre >= least.index_select(0, selection.rows)
    if int(kept.sum()) == int(widths.clamp(max=k).sum()):
        return found.where(kept)
    return found.where(kept & _first_of_ties(found, least, k))


def _padded(found: Selected, width: int, rows: slice) -> Tensor:
    """Return the entries of some rows as a table, minus infinity where a row has no more."""
    bounds = found.selection.bounds[rows.start : rows.stop + 1]
    entries = slice(int(bounds[0]), int(bounds[-1]))
    shift = torch.arange(bounds.numel() - 1, device=bounds.device) * width - bounds[:-1]
    places = shift.index_select(0, found.selection.rows[entries] - rows.start)
    places += torch.arange(entries.start, entries.stop, device=bounds.device)
    table = found.pre.new_full((bounds.numel() - 1, width), -torch.inf)
    table.view(-1).scatter_(0, places, found.pre[entries])
    return table


def _first_of_ties(found: Selected, least: Tensor, k: int) -> Tensor:
    """Return which entries remain where several of a row equal its k-th largest: the first so many of them."""
    selection, limit = found.selection, least.index_select(0, found.selection.rows)
    above, equal = found.pre > limit, found.pre == limit
    room = k - torch.bincount(selection.rows[above], minlength=selection.n_rows)
    before = equal.cumsum(0) - equal.long()
    rank = before - before[selection.bounds[:-1].clamp(max=max(0, before.numel() - 1))].index_select(0, selection.rows)
    return above | (equal & (rank < room.index_select(0, selection.rows)))
