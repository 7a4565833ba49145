"""The exact threshold that gives a mean L0 on held-out rows, without sorting all pre-activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saebench_core.interfaces.context import ActivationReader
from saebench_core.sae import SparseAutoencoder

__all__ = ["quantile_threshold"]

_BINS = 4096
_BATCH = 4096
_COLLECT = 1 << 22


def quantile_threshold(sae: SparseAutoencoder, reader: ActivationReader, l0: float, scale: float = 1.0) -> float:
    """Return theta so that ``#(pre > theta)`` is ``l0`` a row on average, never below zero.

    The bin of the wanted order statistic is narrowed by histograms until its members fit in memory, then they
    are sorted; so the result is exact up to ties.

    Args:
        sae: SAE in training space.
        reader: held-out rows.
        l0: mean number of latents above the threshold.
        scale: what rows are divided by before they reach the SAE.
    """
    keep = round(l0 * reader.rows)
    low, high = 0.0, max(float(pre.max()) for pre in _pre(sae, reader, scale))
    while high > 0:
        counts, above = _histogram(sae, reader, low, high, scale)
        inside = int(counts.sum())
        if above + inside <= keep:
            return low
        width = (high - low) / _BINS
        if inside <= _COLLECT or width <= 1e-7 * high:
            ordered = _between(sae, reader, low, high, scale).sort(descending=True).values
            return float(ordered[keep - above])
        place = int((above + counts.flip(0).cumsum(0) <= keep).sum())
        # one bin more on either side: a value on a bin's edge may be counted next door
        low, high = max(low, high - (place + 2) * width), high - max(0, place - 1) * width
    return 0.0


def _pre(sae: SparseAutoencoder, reader: ActivationReader, scale: float) -> Iterator[Tensor]:
    """Yield dense pre-activations, a few rows at a time."""
    for batch in reader.batches(_BATCH):
        for part in sae.chunks(batch / scale):
            yield sae.pre_activations(part)


def _histogram(
    sae: SparseAutoencoder, reader: ActivationReader, low: float, high: float, scale: float
) -> tuple[Tensor, int]:
    """Return counts of ``(low, high]`` in equal bins, and the number of entries above ``high``."""
    counts = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
    above = 0
    for pre in _pre(sae, reader, scale):
        above += int((pre > high).sum())
        inside = pre[(pre > low) & (pre <= high)]
        place = ((inside.double() - low) / (high - low) * _BINS).long().clamp(0, _BINS - 1)
        counts += torch.bincount(place, minlength=_BINS).cpu()
    return counts, above


def _between(sae: SparseAutoencoder, reader: ActivationReader, low: float, high: float, scale: float) -> Tensor:
    return torch.cat([pre[(pre > low) & (pre <= high)] for pre in _pre(sae, reader, scale)])
