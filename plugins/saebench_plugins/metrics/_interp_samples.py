"""Which windows of a grid a latent is described from, and which its description is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean
from typing import Final

import torch
from torch import Tensor

from saebench_core import named_generator
from saebench_plugins.metrics._interp_dialogues import BRIGHT
from saebench_plugins.metrics._windows import Firing, Recorded, Window

__all__ = ["Sample", "Sizes", "draw_latents", "draw_sample", "mixed"]

_GROUPS: Final = 10


@dataclass(frozen=True)
class Sizes:
    """How many windows are shown and tested.

    Attributes:
        width: tokens of a window.
        shown: windows that a description is made from.
        tested: windows that it is tested on, half of them with the latent.
        spread: whether what is shown is drawn from every tenth by size of code; else it is the largest.
        fuzzed: whether tested windows have marks: where the latent fires, or at random where it is silent.
    """

    width: int
    shown: int
    tested: int
    spread: bool = False
    fuzzed: bool = False


@dataclass(frozen=True)
class Sample:
    """One latent's windows.

    Attributes:
        latent: its number.
        shown: those that it is described from, the largest code first.
        tested: others, in random order.
        active: of each tested one, whether the latent fires there.
    """

    latent: int
    shown: Sequence[Window]
    tested: Sequence[Window]
    active: Sequence[bool]


def draw_latents(counts: Tensor, count: int, fewest: int, seed: int) -> list[int]:
    """Return random latents that fire often enough, by number; fewer if there are not so many."""
    alive = (counts >= fewest).nonzero()[:, 0]
    order = torch.randperm(len(alive), generator=named_generator(seed, "autointerp latents"), device="cpu")
    return sorted(alive[order[:count]].tolist())


def draw_sample(latent: int, firing: Firing, recorded: Recorded, sizes: Sizes, seed: int) -> Sample:
    """Return a latent's windows: some to describe it; then as many of each tenth of the others, and silent ones.

    Where a latent fires in few windows, half of them at most are shown, so that others are left to test.
    """
    generator = named_generator(seed, "autointerp windows", str(latent))
    places = list(range(len(firing.windows)))
    wanted = min(sizes.shown, len(places) // 2)
    shown = sorted(_spread(len(places), wanted, generator)) if sizes.spread else places[:wanted]
    free = sorted(set(places) - set(shown))
    silent = _silent(firing, recorded.count(sizes.width), sizes.tested // 2, generator)
    wanted = min(len(silent), len(free))
    chosen = [free[place] for place in _spread(len(free), wanted, generator)]

    def window(place: int) -> Window:
        number = int(firing.windows[place])
        return Window(number, recorded.tokens(number, sizes.width), firing.values[place])

    nothing = torch.zeros(sizes.width, device="cpu")
    active = [window(place) for place in chosen]
    quiet = [Window(number, recorded.tokens(number, sizes.width), nothing) for number in silent[:wanted]]
    if sizes.fuzzed and active:
        active, quiet = _fuzzed(active, quiet, generator)
    return mixed(latent, [window(place) for place in shown], active, quiet, generator)


def mixed(
    latent: int, shown: Sequence[Window], active: Sequence[Window], silent: Sequence[Window], draw: torch.Generator
) -> Sample:
    """Return a sample whose tested windows stand in random order."""
    tested = [*((window, True) for window in active), *((window, False) for window in silent)]
    order = torch.randperm(len(tested), generator=draw, device="cpu").tolist()
    return Sample(latent, shown, [tested[place][0] for place in order], [tested[place][1] for place in order])


def _fuzzed(
    active: Sequence[Window], silent: Sequence[Window], generator: torch.Generator
) -> tuple[list[Window], list[Window]]:
    """Mark the larger codes, and elsewhere as many random tokens as are marked there on average."""
    right = [replace(window, marks=window.values > BRIGHT * window.peak) for window in active]
    count = ceil(fmean(int((window.values > BRIGHT * window.peak).sum()) for window in active))
    wrong = []
    for window in silent:
        marks = torch.zeros(len(window.ids), dtype=torch.bool, device="cpu")
        marks[torch.randperm(len(marks), generator=generator, device="cpu")[:count]] = True
        wrong.append(replace(window, marks=marks))
    return right, wrong


def _spread(count: int, wanted: int, generator: torch.Generator) -> list[int]:
    """Draw from each tenth of ``count`` ordered places about as many, ``wanted`` in all."""
    found: list[int] = []
    for group in range(_GROUPS):
        start, end = count * group // _GROUPS, count * (group + 1) // _GROUPS
        goal = wanted * (group + 1) // _GROUPS - len(found)
        order = torch.randperm(end - start, generator=generator, device="cpu").tolist()
        found += [start + place for place in order[: max(0, goal)]]
    return found


def _silent(firing: Firing, windows: int, wanted: int, generator: torch.Generator) -> list[int]:
    """Draw windows in which the latent does not fire."""
    free = torch.ones(windows, dtype=torch.bool, device="cpu")
    free[firing.windows] = False
    places = free.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator, device="cpu")[:wanted]
    return places[order].tolist()
