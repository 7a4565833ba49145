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


@final
@dataclass(frozen=True, eq=False)
class Screened:
    """Factors of the product in the screen's format, padded to whole groups, and bounds of what rounding cut off.

    Attributes:
        rows: activations.
        latents: encoder vectors ``(padded d_sae, d_in)``.
        bias: ``(padded d_sae,)``, minus infinity where padded.
        margins: bound of each row's error before the result is rounded, ``(rows, 1)``, fp32.
        unit: largest relative error of that rounding.
    """

    rows: Tensor
    latents: Tensor
    bias: Tensor
    margins: Tensor
    unit: float

    @classmethod
    def of(cls, centred: Tensor, weight: Tensor, bias: Tensor, screen: Screen) -> Screened:
        """Round the factors, and bound what that does to any product."""
        dtype, d_sae = SCREEN_DTYPES[screen], weight.shape[1]
        latents, largest, cut_off = _shortened(weight.T, dtype, -(-d_sae // _FINEST) * _FINEST)
        padded = torch.full_like(latents[:, 0], -torch.inf)
        padded[:d_sae] = bias
        rows = centred.to(dtype)
        norms, rest = rows.float().norm(dim=1), (centred - rows.float()).norm(dim=1)
        margins = rest * largest + norms * cut_off + 4 * (weight.shape[0] + 2) * 2.0**-24 * norms * largest
        margins += (bias - padded[:d_sae].float()).abs().amax() + 2.0**-20 * bias.abs().amax()
        return cls(rows, latents, padded, margins[:, None], _HALF_ULP[screen])

    def parts(self) -> Iterator[Part]:
        """Yield the product, some rows at a time; the next part takes the memory of the last one."""
        weight, size = self.latents.T, part_rows(self.latents.T)
        memory = self.rows.new_empty(min(size, self.rows.shape[0]), weight.shape[1])
        for first in range(0, self.rows.shape[0], size):
            rows = self.rows[first : first + size]
            values = torch.addmm(self.bias, rows, weight, out=memory[: rows.shape[0]])
            yield Part(first, values, self.margins[first : first + size])

    def reached(self, part: Part, k: int) -> tuple[Tensor, Tensor]:
        """Return a number that k entries of each row reach, ``(rows, 1)``, and maxima of groups of latents."""
        width = part.values.shape[1]
        coarse = next((size for size in _GROUPS if width % size == 0 and width // size >= 4 * k), 1)
        fine = min(coarse, _FINEST)
        for positive in (True, False):
            tops = part.maxima(fine, positive)
            fewer = tops.view(tops.shape[0], coarse // fine, -1).amax(1)  # k groups have an entry that reaches it
            least = self.lowest(fewer.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)) - part.margins
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
        hits = (tops >= wanted).view(-1).nonzero()[:, 0]
        rows = torch.div(hits, n_groups, rounding_mode="floor")
        groups = hits - rows * n_groups
        values = grouped[rows, :, groups].float()
        inside = (values >= wanted[rows]).view(-1).nonzero()[:, 0]
        which = torch.div(inside, grouped.shape[1], rounding_mode="floor")
        rows, cols = rows[which], groups[which] + (inside - which * grouped.shape[1]) * n_groups
        values, margins = values.view(-1)[inside], part.margins[rows, 0]
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
        return max(0.0, float(tops.topk(rank, sorted=False).values.min() - 2 * sample.margins.mean()))


def _shortened(latents: Tensor, dtype: torch.dtype, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vectors in a format, padded with zeros, their largest norm, and that of what was cut off."""
    if dtype == latents.dtype and padded == latents.shape[0]:
        return latents, latents.norm(dim=1).amax(), latents.new_zeros(())
    short = torch.zeros(padded, latents.shape[1], dtype=dtype, device=latents.device)
    norms, rest = [], []
    for part, place in zip(torch.split(latents, _CAST_ROWS), torch.split(short, _CAST_ROWS), strict=False):
        place[: part.shape[0]] = part
        norms.append(part.norm(dim=1).amax())
        rest.append((part - place[: part.shape[0]].float()).norm(dim=1).amax())
    return short, torch.stack(norms).amax(), torch.stack(rest).amax()


def part_rows(weight: Tensor) -> int:
    """Return how many rows are looked through at a time, by the encoder ``(d_in, d_sae)``."""
    in_cache = weight.numel() * weight.element_size() <= 2 * _CHUNK_BYTES
    least = _CHUNK_ROWS // 4 if in_cache else _CHUNK_ROWS
    return max(1, least, _CHUNK_BYTES // (weight.element_size() * weight.shape[1]))
