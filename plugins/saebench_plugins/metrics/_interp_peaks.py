"""Windows around the places where a latent fires, as SAEBench draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core import named_generator
from saebench_plugins.metrics._interp_samples import Sample, mixed
from saebench_plugins.metrics._windows import Firing, Recorded, Window

__all__ = ["Peaks", "draw_peaks"]

_FAINT: Final = 0.01


@dataclass(frozen=True)
class Peaks:
    """How many windows are shown and tested.

    Attributes:
        around: tokens on either side of the middle of a window.
        top: windows with the largest codes.
        weighted: windows drawn with the square of their code as weight, below the top ones.
        held: of each of both, those that are tested and not shown.
        silent: tested windows in which the latent does not fire.
    """

    around: int
    top: int
    weighted: int
    held: int
    silent: int


def draw_peaks(latent: int, firing: Firing, recorded: Recorded, peaks: Peaks, seed: int) -> Sample:
    """Return a latent's windows, none of which overlaps another of the same kind in its middle.

    Args:
        latent: its number.
        firing: at which tokens it fires, counted through all sequences, the largest code first.
        recorded: the text.
        peaks: how many.
        seed: of all draws.

    Returns:
        Nothing tested where it does not fire at enough places that lie far enough from the ends of sequences and from
        each other to hold some back.
    """
    draw = named_generator(seed, "autointerp peaks", str(latent))
    codes = torch.zeros(recorded.ids.shape, device="cpu")
    codes.view(-1)[firing.windows] = firing.values[:, 0]
    free = torch.zeros_like(codes, dtype=torch.bool)
    free[:, peaks.around : codes.shape[1] - peaks.around] = True
    top = _largest(codes, free.clone(), peaks)
    if len(top) <= peaks.held:
        return Sample(latent, [], [], [])
    least = min(float(codes.view(-1)[place]) for place in top)
    weighted = _weighted(codes, free & (codes < least), peaks, draw)
    faint = _FAINT * float(codes.view(-1)[top[0]])
    windows = [[_window(place, codes, recorded, peaks.around, faint) for place in part] for part in (top, weighted)]
    shown, held = _split(windows, peaks.held, draw)
    quiet = torch.nn.functional.max_pool1d(codes[None], 2 * peaks.around + 1, 1, peaks.around)[0] <= 0
    places = (free & quiet).view(-1).nonzero()[:, 0]
    silent = places[torch.randperm(len(places), generator=draw, device="cpu")[: peaks.silent]].tolist()
    if not silent:
        return Sample(latent, [], [], [])
    quiet_windows = [_window(place, codes, recorded, peaks.around, faint) for place in silent]
    return mixed(latent, sorted(shown, key=lambda window: -window.peak), held, quiet_windows, draw)


def _split(windows: Sequence[Sequence[Window]], held: int, draw: torch.Generator) -> tuple[list[Window], list[Window]]:
    """Hold some of each kind back at random, of the rarer kind only where others are left."""
    shown, tested = [], []
    for part in windows:
        order = torch.randperm(len(part), generator=draw, device="cpu").tolist()
        cut = held if len(part) > held else 0
        tested += [part[place] for place in order[:cut]]
        shown += [part[place] for place in order[cut:]]
    return shown, tested


def _largest(
    codes: Float[Tensor, "sequences length"], free: Bool[Tensor, "sequences length"], peaks: Peaks
) -> list[int]:
    """Return the largest codes' places, none nearer to another than ``around``."""
    order = torch.where(free, codes, 0).view(-1).sort(descending=True, stable=True)
    found: list[int] = []
    for value, place in zip(order.values.tolist(), order.indices.tolist(), strict=True):
        if value <= 0 or len(found) == peaks.top:
            break
        if free.view(-1)[place]:
            found.append(place)
            _close(free, place, peaks.around)
    return found


def _weighted(
    codes: Float[Tensor, "sequences length"],
    free: Bool[Tensor, "sequences length"],
    peaks: Peaks,
    draw: torch.Generator,
) -> list[int]:
    """Draw places by the squares of their codes, none nearer to another than ``around``."""
    found: list[int] = []
    while len(found) < peaks.weighted:
        places = (free & (codes > 0)).view(-1).nonzero()[:, 0]
        if not len(places):
            break
        # fp64 adds up millions of squares, and one draw decides
        sums = codes.view(-1)[places].double().square().cumsum(0)
        hit = torch.rand(1, generator=draw, dtype=torch.float64, device="cpu") * sums[-1]
        place = int(places[torch.searchsorted(sums, hit, right=True).clamp(max=len(places) - 1)])
        found.append(place)
        _close(free, place, peaks.around)
    return found


def _close(free: Bool[Tensor, "sequences length"], place: int, around: int) -> None:
    row, column = divmod(place, free.shape[1])
    free[row, max(0, column - around) : column + around + 1] = False


def _window(
    place: int, codes: Float[Tensor, "sequences length"], recorded: Recorded, around: int, faint: float
) -> Window:
    """Return the window around a place, without codes that are too faint to be marked."""
    row, column = divmod(place, codes.shape[1])
    part = slice(column - around, column + around + 1)
    values = codes[row, part]
    return Window(place, recorded.ids[row, part], torch.where(values > faint, values, 0))
