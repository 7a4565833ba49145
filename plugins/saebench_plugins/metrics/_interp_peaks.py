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


@dataclass
class _Free:
    """Places where a latent fires, the largest code first, without those that a window may not stand at any more."""

    places: Tensor
    codes: Tensor
    length: int

    def take(self, number: int, around: int) -> int:
        """Return a place, and leave out all that lie so near to it."""
        place = int(self.places[number])
        near = (self.places - place).abs() <= around
        near &= self.places // self.length == place // self.length
        self.places, self.codes = self.places[~near], self.codes[~near]
        return place


def draw_peaks(latent: int, firing: Firing, recorded: Recorded, peaks: Peaks, seed: int) -> Sample:
    """Return a latent's windows; no middle of one that has the latent lies in another.

    Args:
        latent: its number.
        firing: at which tokens it fires, counted through all sequences, the largest code first.
        recorded: the text.
        peaks: how many.
        seed: of all draws.

    Returns:
        Nothing tested where there are not as many places of each kind as are held back, and one more.
    """
    draw = named_generator(seed, "autointerp peaks", str(latent))
    length, around = recorded.ids.shape[1], peaks.around
    column = firing.windows % length
    inside = (column >= around) & (column < length - around)
    free = _Free(firing.windows[inside], firing.values[inside, 0], length)
    faint = _FAINT * float(free.codes[0]) if len(free.codes) else 0.0
    top: list[int] = []
    least = 0.0
    while len(top) < peaks.top and len(free.codes):
        least = float(free.codes[0])
        top.append(free.take(0, around))
    rest = (free.codes < least) & (free.codes > faint)
    free = _Free(free.places[rest], free.codes[rest], length)
    weighted: list[int] = []
    while len(weighted) < peaks.weighted and len(free.codes):
        weighted.append(free.take(_by_square(free.codes, draw), around))
    codes = torch.zeros(recorded.ids.shape, device="cpu")
    codes.view(-1)[firing.windows] = firing.values[:, 0]
    silent = _silent(codes, around, peaks.silent, draw)
    wanted = ((top, peaks.held), (weighted, peaks.held if peaks.weighted else -1), (silent, peaks.silent - 1))
    if any(len(found) <= count for found, count in wanted):
        return Sample(latent, [], [], [])
    kinds = [[_window(place, codes, recorded, around, faint) for place in part] for part in (top, weighted)]
    shown, held = _split([part for part in kinds if part], peaks.held, draw)
    quiet = [_window(place, codes, recorded, around, faint) for place in silent]
    return mixed(latent, sorted(shown, key=lambda window: -window.peak), held, quiet, draw)


def _by_square(codes: Float[Tensor, " places"], draw: torch.Generator) -> int:
    """Draw a number with the squares of codes as weights."""
    sums = codes.double().square().cumsum(0)  # fp64 adds up millions of squares
    hit = torch.rand(1, generator=draw, dtype=torch.float64, device="cpu") * sums[-1]
    return int(torch.searchsorted(sums, hit, right=True).clamp(max=len(codes) - 1))


def _silent(codes: Float[Tensor, "sequences length"], around: int, count: int, draw: torch.Generator) -> list[int]:
    """Draw middles of windows without any code."""
    free: Bool[Tensor, "sequences length"] = (
        torch.nn.functional.max_pool1d(codes[None], 2 * around + 1, 1, around)[0] <= 0
    )
    free[:, :around] = False
    free[:, codes.shape[1] - around :] = False
    places = free.view(-1).nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=draw, device="cpu")[:count]].tolist()


def _split(kinds: Sequence[Sequence[Window]], held: int, draw: torch.Generator) -> tuple[list[Window], list[Window]]:
    """Hold some of each kind back at random."""
    shown: list[Window] = []
    tested: list[Window] = []
    for part in kinds:
        order = torch.randperm(len(part), generator=draw, device="cpu").tolist()
        tested += [part[place] for place in order[:held]]
        shown += [part[place] for place in order[held:]]
    return shown, tested


def _window(
    place: int, codes: Float[Tensor, "sequences length"], recorded: Recorded, around: int, faint: float
) -> Window:
    """Return the window around a place, without codes that are too faint to be marked."""
    row, column = divmod(place, codes.shape[1])
    part = slice(column - around, column + around + 1)
    values = codes[row, part]
    return Window(place, recorded.ids[row, part], torch.where(values > faint, values, 0))
