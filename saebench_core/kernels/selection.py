"""Which latents of which rows are kept: sparse patterns of a batch, and codes on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saebench_core.kernels.lists import divided, order, places

__all__ = ["Codes", "Selected", "Selection", "from_mask", "select_mask"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Which latents of which rows are kept: entries sorted by row.

    Attributes:
        rows: row of each entry, non-decreasing, ``(n_entries,)``.
        cols: latent of each entry, ``(n_entries,)``.
        n_rows: number of rows of the batch.
        d_sae: number of latents.
    """

    rows: Int[Tensor, " entries"]
    cols: Int[Tensor, " entries"]
    n_rows: int
    d_sae: int

    @property
    def density(self) -> float:
        """Share of the ``n_rows x d_sae`` entries that are selected."""
        return self.cols.numel() / max(1, self.n_rows * self.d_sae)

    @cached_property
    def bounds(self) -> Int[Tensor, " bounds"]:
        """First entry of each row and the number of all, ``(n_rows + 1,)``."""
        return _bounds(self.rows, self.n_rows)

    @property
    def offsets(self) -> Int[Tensor, " rows"]:
        """First entry of each row, ``(n_rows,)``."""
        return self.bounds[:-1]

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " bounds"]]:
        """Order of the entries sorted by latent, and the bounds of each latent, ``(d_sae + 1,)``."""
        return order(self.cols, self.d_sae), _bounds(self.cols, self.d_sae)

    def fired(self, values: Float[Tensor, " entries"]) -> Bool[Tensor, " d_sae"]:
        """Latents that have a positive value somewhere in the batch."""
        return torch.bincount(self.cols.index_select(0, places(values > 0)), minlength=self.d_sae) > 0

    def at(self, which: Int[Tensor, " kept"]) -> Selection:
        """Return the selection of some entries, by their places."""
        rows, cols = self.rows.index_select(0, which), self.cols.index_select(0, which)
        return Selection(rows, cols, self.n_rows, self.d_sae)

    def scatter(self, values: Float[Tensor, " entries"]) -> Float[Tensor, "rows d_sae"]:
        """Return the dense ``(n_rows, d_sae)`` matrix with these values and zeros elsewhere."""
        dense = values.new_zeros(self.n_rows, self.d_sae)
        dense[self.rows, self.cols] = values
        return dense


class Selected(NamedTuple):
    """A selection, and the pre-activations at its entries without gradients.

    Attributes:
        selection: which entries.
        pre: their pre-activations, ``(n_entries,)``, fp32.
    """

    selection: Selection
    pre: Float[Tensor, " entries"]

    def where(self, kept: Bool[Tensor, " entries"]) -> Selected:
        """Return the entries that are true."""
        which = places(kept)
        return Selected(self.selection.at(which), self.pre.index_select(0, which))


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes of a batch: a selection and the value of each of its entries.

    Attributes:
        selection: which entries are kept.
        values: their values, ``(n_entries,)``; a kept entry may be zero.
    """

    selection: Selection
    values: Float[Tensor, " entries"]

    def to_dense(self) -> Float[Tensor, "rows d_sae"]:
        """Return the codes as a dense ``(n_rows, d_sae)`` matrix."""
        return self.selection.scatter(self.values)

    def l0(self) -> Float[Tensor, " rows"]:
        """Number of entries that are not zero, per row."""
        selection = self.selection
        return torch.bincount(selection.rows[self.values != 0], minlength=selection.n_rows).to(self.values.dtype)


def _bounds(numbers: Tensor, count: int) -> Tensor:
    """Return where each of ``count`` numbers begins in a sorted list, and the list's length."""
    bounds = torch.zeros(count + 1, dtype=torch.int64, device=numbers.device)
    torch.cumsum(torch.bincount(numbers, minlength=count), 0, out=bounds[1:])
    return bounds


def from_mask(mask: Bool[Tensor, "rows d_sae"]) -> Selection:
    """Return the selection of the true entries."""
    return _from_places(places(mask), mask)


def select_mask(pre: Float[Tensor, "rows d_sae"], mask: Bool[Tensor, "rows d_sae"]) -> Selected:
    """Return the true entries with their pre-activations."""
    which = places(mask)
    return Selected(_from_places(which, mask), pre.reshape(-1).index_select(0, which))


def _from_places(which: Tensor, mask: Tensor) -> Selection:
    n_rows, d_sae = mask.shape
    rows, cols = divided(which, d_sae)
    return Selection(rows, cols, n_rows, d_sae)
