"""Which windows a latent is described from, and which its description is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from saebench_core import named_generator
from saebench_plugins.metrics._windows import Firing, Recorded, Window

__all__ = ["Sample", "Sizes", "draw_latents", "draw_sample"]

_GROUPS: Final = 10


@dataclass(frozen=True)
class Sizes:
    """How many windows are shown and tested.

    Attributes:
        width: tokens of a window.
        shown: windows that a description is made from, those with the largest codes.
        tested: windows that it is tested on, half of them with the latent.
        fewest: windows in which a latent must fire to be asked about.
    """

    width: int
    shown: int
    tested: int
    fewest: int


@dataclass(frozen=True)
class Sample:
    """One latent's windows.

    Attributes:
        latent: its number.
        shown: those with the largest codes, largest first.
        tested: others, in random order.
        active: of each tested one, whether the latent fires there.
    """

    latent: int
    shown: Sequence[Window]
    tested: Sequence[Window]
    active: Sequence[bool]


def draw_latents(counts: Tensor, count: int, fewest: int, seed: int) -> list[int]:
    """Return random latents that fire in enough windows, by number; fewer if there are not so many."""
    alive = (counts >= fewest).nonzero()[:, 0]
    order = torch.randperm(len(alive), generator=named_generator(seed, "autointerp latents"), device="cpu")
    return sorted(alive[order[:count]].tolist())


def draw_sample(latent: int, firing: Firing, recorded: Recorded, sizes: Sizes, seed: int) -> Sample:
    """Return a latent's windows: the largest to describe it; then as many of each tenth of the others, and silent ones.

    Where a latent fires in few windows, half of them at most are shown, so that others are left to test.
    """
    generator = named_generator(seed, "autointerp windows", str(latent))
    shown = min(sizes.shown, len(firing.windows) // 2)
    silent = _silent(firing, recorded.count(sizes.width), sizes.tested // 2, generator)
    wanted = min(len(silent), len(firing.windows) - shown)
    chosen = [shown + place for place in _spread(len(firing.windows) - shown, wanted, generator)]
    silent = silent[:wanted]

    def window(place: int) -> Window:
        number = int(firing.windows[place])
        return Window(number, recorded.tokens(number, sizes.width), firing.values[place])

    tested = [(window(place), True) for place in chosen]
    nothing = torch.zeros(sizes.width)
    tested += [(Window(number, recorded.tokens(number, sizes.width), nothing), False) for number in silent]
    order = torch.randperm(len(tested), generator=generator, device="cpu").tolist()
    mixed = [tested[place] for place in order]
    return Sample(
        latent, [window(place) for place in range(shown)], [one for one, _ in mixed], [active for _, active in mixed]
    )


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
    free = torch.ones(windows, dtype=torch.bool)
    free[firing.windows] = False
    places = free.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator, device="cpu")[:wanted]
    return places[order].tolist()
