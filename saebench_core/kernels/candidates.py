"""A product in a number format that is fast, looked through part by part, with bounds of its error.

What belongs to a selection is found without a miss: bounds are those of Cauchy-Schwarz on what rounding cut off of
both factors, and of the sums' own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, final

import torch
from torch import Tensor

from saebench_core.kernels.lists import divided, kth_largest, places

__all__ = ["SCREEN_DTYPES", "Candidates", "Part", "Screen", "Screened", "part_rows"]

Screen = Literal["bf16", "fp32"]

SCREEN_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}
_BITS: Final = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_HALF_ULP: Final = {"bf16": 2.0**-8 * 1.01, "fp32": 2.0**-24 * 1.01}
_CHUNK_BYTES: Final = 1 << 21
"""A part of the product that stays in a cache while it is looked through, ..."""
_CHUNK_ROWS: Final = 512
"""... but of so many rows at least, or the product itself becomes slow; a quarter where the encoder stays there too."""
_GROUPS: Final = (64, 32, 16, 8, 4, 2, 1)
_FINEST: Final = 16
"""Latents in a group whose largest value is kept; divides the padded number of latents."""
_STRIDE: Final = 32
"""Inputs that a product in bf16 takes at a time."""
_SAMPLE_ROWS: Final = 128
_CAST_ROWS: Final = 1024


class Part(NamedTuple):
    """Screened values of some rows.

    Attributes:
        first: number of the first row.
        values: ``(rows, padded d_sae)`` in the screen's format.
        margins: bound of each row's error before the result was rounded, ``(rows, 1)``.
    """

    first: int
    values: Tensor
    margins: Tensor

    def maxima(self, group: int, positive: bool) -> Tensor:
        """Return the largest value of each group of latents, ``(rows, groups)``, fp32.

        Args:
            group: latents in a group; those of one group are ``groups`` apart.
            positive: only values above zero are asked for; a group without any gives some value that it has. Their bits
                are in the order of whole numbers then, whose maxima are found several times as fast.
        """
        values = self.values.view(_BITS[self.values.dtype]) if positive else self.values
        grouped = values.view(values.shape[0], group, -1).amax(1)
        return grouped.view(self.values.dtype).float()


class Candidates(NamedTuple):
    """Entries that may belong to a selection, sorted by row.

    Attributes:
        rows: in the whole batch.
        cols: latents.
        values: as they were screened.
        margins: bound of each value's error before the result was rounded.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    margins: Tensor

    def at(self, which: Tensor) -> Candidates:
        """Return some of them, by their places."""
        return Candidates(*(column.index_select(0, which) for column in self))


@final
@dataclass(frozen=True, eq=False)
class Screened:
    """Factors of the product in the screen's format, padded to whole groups, and bounds of what rounding cut off.

    Attributes:
        rows: activations; where they are cut short, a one stands behind each.
        latents: encoder vectors, one a row, ``padded d_sae`` of them; where they are cut short, each one's bias stands
            behind it.
        bias: ``(padded d_sae,)``, minus infinity where padded; nothing where it stands among the latents.
        margins: bound of each row's error before the result is rounded, ``(rows, 1)``, fp32.
        unit: largest relative error of that rounding.
    """

    rows: Tensor
    latents: Tensor
    bias: Tensor | None
    margins: Tensor
    unit: float

    @classmethod
    def of(cls, centred: Tensor, weight: Tensor, bias: Tensor, screen: Screen) -> Screened:
        """Round the factors, and bound what that does to any product."""
        dtype, (d_in, d_sae) = SCREEN_DTYPES[screen], weight.shape
        padded = bias.new_full((-(-d_sae // _FINEST) * _FINEST,), -torch.inf, dtype=dtype)
        padded[:d_sae] = bias
        latents, largest, cut_off = _shortened(weight.T, padded)
        rows = _beside(centred, torch.ones_like(centred[:, 0], dtype=dtype), latents.shape[1])
        exact = rows[:, :d_in].float()
        norms, rest = exact.norm(dim=1), (centred - exact).norm(dim=1)
        finite = torch.where(bias.isfinite(), bias, 0.0)  # others come out as they are
        sums = 4 * (d_in + 2) * 2.0**-24 * (norms * largest + finite.abs().amax())
        margins = rest * largest + norms * cut_off + sums + (finite - finite.to(dtype).float()).abs().amax()
        return cls(rows, latents, None if latents.shape[1] > d_in else padded, margins[:, None], _HALF_ULP[screen])

    def parts(self) -> Iterator[Part]:
        """Yield the product, some rows at a time; the next part takes the memory of the last one."""
        weight, size = self.latents.T, part_rows(self.latents.T)
        memory = self.rows.new_empty(min(size, self.rows.shape[0]), weight.shape[1])
        for first in range(0, self.rows.shape[0], size):
            rows = self.rows[first : first + size]
            out = memory[: rows.shape[0]]
            values = (
                torch.mm(rows, weight, out=out) if self.bias is None else torch.addmm(self.bias, rows, weight, out=out)
            )
            yield Part(first, values, self.margins[first : first + size])

    def reached(self, part: Part, k: int) -> tuple[Tensor, Tensor]:
        """Return a number that k entries of each row reach, ``(rows, 1)``, and maxima of groups of latents."""
        width = part.values.shape[1]
        coarse = next((size for size in _GROUPS if width % size == 0 and width // size >= 4 * k), 1)
        fine = min(coarse, _FINEST)
        for positive in (True, False):
            tops = part.maxima(fine, positive)
            fewer = tops.view(tops.shape[0], coarse // fine, -1).amax(1)  # k groups have an entry that reaches it
            least = self.lowest(kth_largest(fewer, k)[:, None]) - part.margins
            if bool((self.wanted(part, least) > 0).all()):
                break
        return least, tops

    def wanted(self, part: Part, least: Tensor | float) -> Tensor:
        """Return the least screened value of each row whose true value may reach ``least``."""
        return self.lowest(least - part.margins)

    def lowest(self, values: Tensor) -> Tensor:
        """Return the smallest number that may have been rounded to these values."""
        return values - self.unit * values.abs()

    def candidates(self, part: Part, least: Tensor | float, tops: Tensor | None = None) -> Candidates:
        """Return the entries whose true value may reach ``least``.

        Args:
            part: screened values.
            least: a scalar, or one number a row ``(rows, 1)``.
            tops: maxima of groups, where they are there already.
        """
        wanted = self.wanted(part, least)
        if tops is None:
            tops = part.maxima(_FINEST, positive=bool((wanted > 0).all()))
        n_groups = tops.shape[1]
        grouped = part.values.view(part.values.shape[0], -1, n_groups)
        rows, groups = divided(places(tops >= wanted), n_groups)
        values = grouped[rows, :, groups].float()
        inside = places(values >= wanted.index_select(0, rows))
        which, member = divided(inside, grouped.shape[1])
        rows, cols = rows.index_select(0, which), groups.index_select(0, which) + member * n_groups
        values, margins = values.view(-1).index_select(0, inside), part.margins[:, 0].index_select(0, rows)
        return Candidates(rows + part.first, cols, values, margins)

    def surely(self, found: Candidates) -> Tensor:
        """Return lower bounds of the candidates' true values."""
        return self.lowest(found.values) - found.margins

    def perhaps(self, found: Candidates) -> Tensor:
        """Return upper bounds of the candidates' true values."""
        return found.values + self.unit * found.values.abs() + found.margins

    def guess(self, per_row: float) -> float:
        """Guess, from a few rows, a number that the entries of a selection exceed; zero if unsure."""
        stride = max(1, self.rows.shape[0] // _SAMPLE_ROWS)
        sample = replace(self, rows=self.rows[::stride].contiguous(), margins=self.margins[::stride].contiguous())
        tops = torch.cat([part.maxima(_FINEST, positive=True).flatten() for part in sample.parts()])
        expected = per_row * sample.rows.shape[0]
        rank = int(1.05 * expected + 6 * expected**0.5 + 8)
        if rank >= tops.numel():
            return 0.0
        return max(0.0, float(kth_largest(tops, rank) - 2 * sample.margins.mean()))


def _shortened(latents: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vectors in the bias' format, padded to its length, their largest norm, and that of what was cut off.

    Those that are cut short have their bias behind them: a product that begins with a copy of it takes up to half as
    long again.
    """
    dtype, padded, (d_sae, d_in) = bias.dtype, bias.shape[0], latents.shape
    if dtype == latents.dtype and padded == d_sae:
        return latents, latents.norm(dim=1).amax(), latents.new_zeros(())
    short = latents.new_zeros(padded, d_in if dtype == latents.dtype else _width(d_in), dtype=dtype)
    norms, rest = [], []
    for part, place in zip(torch.split(latents, _CAST_ROWS), torch.split(short[:, :d_in], _CAST_ROWS), strict=False):
        place[: part.shape[0]] = part
        norms.append(part.norm(dim=1).amax())
        rest.append((part - place[: part.shape[0]].float()).norm(dim=1).amax())
    if short.shape[1] > d_in:
        short[:, d_in] = bias
    return short, torch.stack(norms).amax(), torch.stack(rest).amax()


def _width(d_in: int) -> int:
    """Return the least number of inputs that holds one more and is a multiple of what products take at a time."""
    return -(-(d_in + 1) // _STRIDE) * _STRIDE


def _beside(rows: Tensor, column: Tensor, width: int) -> Tensor:
    """Return the rows in the column's format; if they are to be wider, with the column behind them, then zeros."""
    if width == rows.shape[1]:
        return rows.to(column.dtype)
    wide = column.new_zeros(rows.shape[0], width)
    wide[:, : rows.shape[1]] = rows
    wide[:, rows.shape[1]] = column
    return wide


def part_rows(weight: Tensor) -> int:
    """Return how many rows are looked through at a time, by the encoder ``(d_in, d_sae)``."""
    in_cache = weight.numel() * weight.element_size() <= 2 * _CHUNK_BYTES
    least = _CHUNK_ROWS // 4 if in_cache else _CHUNK_ROWS
    return max(1, least, _CHUNK_BYTES // (weight.element_size() * weight.shape[1]))
