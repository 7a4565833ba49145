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
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels.candidates import SCREEN_DTYPES, Candidates, Screen, Screened, part_rows
from saebench_core.kernels.largest import largest, largest_of_rows, topk_mask
from saebench_core.kernels.lists import kth_largest, places
from saebench_core.kernels.products import DENSE_SHARE, sampled_product
from saebench_core.kernels.selection import Selected, Selection, select_mask

__all__ = ["DenseSwitch", "PreActivations", "Screen", "fast_screen"]


@lru_cache(maxsize=8)
def fast_screen(device_type: str) -> Screen:
    """Return the format in which products are faster on this machine, by a measurement made once a process."""
    device = torch.device(device_type)
    left, right = torch.ones(512, 512, device=device), torch.ones(512, 2048, device=device)
    seconds = {name: _seconds(left.to(dtype), right.to(dtype)) for name, dtype in SCREEN_DTYPES.items()}
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
        for rows in torch.split(self.centred, part_rows(self.weight)):
            yield torch.addmm(self.bias, rows, self.weight)

    def above(self, threshold: Tensor | float) -> Selected:
        """Select the entries strictly above a threshold, a scalar or one value a latent ``(d_sae,)``."""
        if self.dense:
            return self._joined([select_mask(pre, pre > threshold) for pre in self.parts()])
        screened = Screened.of(self.centred, self.weight, self.bias - threshold, self.screen)
        selected = self._recomputed([screened.candidates(part, 0.0) for part in screened.parts()])
        limit = threshold[selected.selection.cols] if isinstance(threshold, Tensor) and threshold.ndim else threshold
        return selected.where(selected.pre > limit)

    def row_topk(self, k: int) -> Selected:
        """Select the k largest entries of every row."""
        if k > DENSE_SHARE * self.d_sae:
            return self._joined([select_mask(pre, topk_mask(pre, k)) for pre in self.parts()])
        screened, found = Screened.of(self.centred, self.weight, self.bias, self.screen), []
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
        screened = Screened.of(self.centred, self.weight, self.bias, self.screen)
        least = screened.guess(count / self.n_rows)
        while True:
            found = [screened.candidates(part, least) for part in screened.parts()]
            surely = torch.cat([screened.surely(candidates) for candidates in found])
            sure = float(kth_largest(surely, count)) if surely.numel() >= count else 0.0
            if sure >= least or least <= 0:  # nothing below `least` can be among the largest
                break
            least = max(0.0, sure)
        found = [candidates.at(places(screened.perhaps(candidates) >= sure)) for candidates in found]
        selected = self._recomputed(found)
        return largest(selected.where(selected.pre > 0), count)

    def _joined(self, parts: Sequence[Selected]) -> Selected:
        """Join selections of consecutive rows."""
        starts = itertools.accumulate((part.selection.n_rows for part in parts), initial=0)
        rows = [part.selection.rows + start for part, start in zip(parts, starts, strict=False)]
        cols = [part.selection.cols for part in parts]
        selection = Selection(torch.cat(rows), torch.cat(cols), self.n_rows, self.d_sae)
        return Selected(selection, torch.cat([part.pre for part in parts]))

    def _recomputed(self, found: Sequence[Candidates]) -> Selected:
        """Return the candidates with their values in fp32."""
        none = torch.empty(0, dtype=torch.int64, device=self.centred.device)
        rows = torch.cat([candidates.rows for candidates in found]) if found else none
        cols = torch.cat([candidates.cols for candidates in found]) if found else none
        selection = Selection(rows, cols, self.n_rows, self.d_sae)
        products = sampled_product(self.centred, self.weight.T, selection)
        return Selected(selection, products + self.bias.index_select(0, cols))
