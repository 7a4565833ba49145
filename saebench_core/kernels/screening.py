"""Selection among ``batch x d_sae`` pre-activations without holding them: screen, recompute, choose.

A product in a short number format finds candidates. Its error is bounded by the parts that rounding cut off
(Cauchy-Schwarz on both factors' residuals), so no entry that belongs to the selection is missed; the candidates'
values are then recomputed in fp32, one product of two vectors each, and the choice is made among those. What comes
out does not depend on the format that screened.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels.largest import largest, largest_of_rows, topk_mask
from saebench_core.kernels.products import DENSE_SHARE, sampled_product
from saebench_core.kernels.selection import Selected, Selection, select_mask

__all__ = ["DenseSwitch", "PreActivations", "Screen", "fast_screen"]

Screen = Literal["bf16", "fp32"]

_DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}
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


@lru_cache(maxsize=8)
def fast_screen(device_type: str) -> Screen:
    """Return the format in which products are faster on this machine, by a measurement made once a process."""
    device = torch.device(device_type)
    left, right = torch.ones(512, 512, device=device), torch.ones(512, 2048, device=device)
    seconds = {name: _seconds(left.to(dtype), right.to(dtype)) for name, dtype in _DTYPES.items()}
    return "bf16" if seconds["bf16"] < 0.8 * seconds["fp32"] else "fp32"


def _seconds(left: Tensor, right: Tensor) -> float:
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return best


@final
@dataclass
class DenseSwitch:
    """Says whether the next step selects from plain products: by the last one's density, with hysteresis.

    Attributes:
        now: whether it does; a training starts so, for nothing is known of the density yet.
    """

    now: bool = True

    def update(self, density: float) -> None:
        """Take in the share of entries that a step selected."""
        if density > 1.25 * DENSE_SHARE:
            self.now = True
        elif density < 0.8 * DENSE_SHARE:
            self.now = False


class _Part(NamedTuple):
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


class _Candidates(NamedTuple):
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
class PreActivations:
    """``centred @ W_enc + b_enc`` of a batch, from which entries are selected, without gradients.

    Attributes:
        centred: activations minus the centre, ``(rows, d_in)``, fp32.
        weight: encoder ``(d_in, d_sae)``; each latent's vector lies together in memory.
        bias: ``(d_sae,)``.
        screen: format that finds candidates.
        dense: `above` takes plain fp32 products, for selections of a large share; of the others the share is known.
    """

    centred: Float[Tensor, "rows d_in"]
    weight: Float[Tensor, "d_in d_sae"]
    bias: Float[Tensor, " d_sae"]
    screen: Screen = "fp32"
    dense: bool = False

    @property
    def n_rows(self) -> int:
        """Rows in the batch."""
        return self.centred.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.weight.shape[1]

    def parts(self) -> Iterator[Float[Tensor, "part d_sae"]]:
        """Yield dense fp32 pre-activations, some rows at a time."""
        for rows in torch.split(self.centred, _part_rows(self.weight)):
            yield torch.addmm(self.bias, rows, self.weight)

    def above(self, threshold: Tensor | float) -> Selected:
        """Select the entries strictly above a threshold, a scalar or one value a latent ``(d_sae,)``."""
        if self.dense:
            return self._joined([select_mask(pre, pre > threshold) for pre in self.parts()])
        screened = _Screened.of(self.centred, self.weight, self.bias - threshold, self.screen)
        selected = self._recomputed([screened.candidates(part, 0.0) for part in screened.parts()])
        limit = threshold[selected.selection.cols] if isinstance(threshold, Tensor) and threshold.ndim else threshold
        return selected.where(selected.pre > limit)

    def row_topk(self, k: int) -> Selected:
        """Select the k largest entries of every row."""
        if k > DENSE_SHARE * self.d_sae:
            return self._joined([select_mask(pre, topk_mask(pre, k)) for pre in self.parts()])
        screened, found = _Screened.of(self.centred, self.weight, self.bias, self.screen), []
        for part in screened.parts():
            least, tops = screened.reached(part, k)
            found.append(screened.candidates(part, least, tops))
        return largest_of_rows(self._recomputed(found), k)

    def batch_topk(self, count: int) -> Selected:
        """Select the ``count`` largest positive entries of the batch, fewer if there are fewer; ties are all kept."""
        if count == 0:
            return self._recomputed([])
        if count > DENSE_SHARE * self.d_sae * self.n_rows:
            return largest(self._joined([select_mask(pre, pre > 0) for pre in self.parts()]), count)
        screened = _Screened.of(self.centred, self.weight, self.bias, self.screen)
        least = screened.guess(count / self.n_rows)
        while True:
            found = [screened.candidates(part, least) for part in screened.parts()]
            surely = torch.cat([screened.surely(candidates) for candidates in found])
            sure = float(surely.topk(count, sorted=False).values.min()) if surely.numel() >= count else 0.0
            if sure >= least or least <= 0:  # nothing below `least` can be among the largest
                break
            least = max(0.0, sure)
        kept = [screened.perhaps(candidates) >= sure for candidates in found]
        found = [_Candidates(*(column[keep] for column in part)) for part, keep in zip(found, kept, strict=True)]
        selected = self._recomputed(found)
        return largest(selected.where(selected.pre > 0), count)

    def _joined(self, parts: Sequence[Selected]) -> Selected:
        """Join selections of consecutive rows."""
        starts = itertools.accumulate((part.selection.n_rows for part in parts), initial=0)
        rows = [part.selection.rows + start for part, start in zip(parts, starts, strict=False)]
        cols = [part.selection.cols for part in parts]
        selection = Selection(torch.cat(rows), torch.cat(cols), self.n_rows, self.d_sae)
        return Selected(selection, torch.cat([part.pre for part in parts]))

    def _recomputed(self, found: Sequence[_Candidates]) -> Selected:
        """Return the candidates with their values in fp32."""
        none = torch.empty(0, dtype=torch.int64, device=self.centred.device)
        rows = torch.cat([candidates.rows for candidates in found]) if found else none
        cols = torch.cat([candidates.cols for candidates in found]) if found else none
        selection = Selection(rows, cols, self.n_rows, self.d_sae)
        return Selected(selection, sampled_product(self.centred, self.weight.T, selection) + self.bias[cols])


@final
@dataclass(frozen=True, eq=False)
class _Screened:
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
    def of(cls, centred: Tensor, weight: Tensor, bias: Tensor, screen: Screen) -> _Screened:
        """Round the factors, and bound what that does to any product."""
        dtype, d_sae = _DTYPES[screen], weight.shape[1]
        latents, largest, cut_off = _shortened(weight.T, dtype, -(-d_sae // _FINEST) * _FINEST)
        padded = torch.full_like(latents[:, 0], -torch.inf)
        padded[:d_sae] = bias
        rows = centred.to(dtype)
        norms, rest = rows.float().norm(dim=1), (centred - rows.float()).norm(dim=1)
        margins = rest * largest + norms * cut_off + 4 * (weight.shape[0] + 2) * 2.0**-24 * norms * largest
        margins += (bias - padded[:d_sae].float()).abs().amax() + 2.0**-20 * bias.abs().amax()
        return cls(rows, latents, padded, margins[:, None], _HALF_ULP[screen])

    def parts(self) -> Iterator[_Part]:
        """Yield the product, some rows at a time; the next part takes the memory of the last one."""
        weight, size = self.latents.T, _part_rows(self.latents.T)
        memory = self.rows.new_empty(min(size, self.rows.shape[0]), weight.shape[1])
        for first in range(0, self.rows.shape[0], size):
            rows = self.rows[first : first + size]
            values = torch.addmm(self.bias, rows, weight, out=memory[: rows.shape[0]])
            yield _Part(first, values, self.margins[first : first + size])

    def reached(self, part: _Part, k: int) -> tuple[Tensor, Tensor]:
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

    def wanted(self, part: _Part, least: Tensor | float) -> Tensor:
        """Return the least screened value of each row whose true value may reach ``least``."""
        return self.lowest(least - part.margins)

    def lowest(self, values: Tensor) -> Tensor:
        """Return the smallest number that may have been rounded to these values."""
        return values - self.unit * values.abs()

    def candidates(self, part: _Part, least: Tensor | float, tops: Tensor | None = None) -> _Candidates:
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
        return _Candidates(rows + part.first, cols, values, margins)

    def surely(self, found: _Candidates) -> Tensor:
        """Return lower bounds of the candidates' true values."""
        return self.lowest(found.values) - found.margins

    def perhaps(self, found: _Candidates) -> Tensor:
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


def _part_rows(weight: Tensor) -> int:
    """Return how many rows are looked through at a time, by the encoder ``(d_in, d_sae)``."""
    in_cache = weight.numel() * weight.element_size() <= 2 * _CHUNK_BYTES
    least = _CHUNK_ROWS // 4 if in_cache else _CHUNK_ROWS
    return max(1, least, _CHUNK_BYTES // (weight.element_size() * weight.shape[1]))
