"""Latents for people: those that were told best, and some drawn at random, trained beside twins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from saebench_core import Card, Column, Excerpt, Gallery, Observed, named_generator
from saebench_plugins.metrics._windows import carried

__all__ = ["drawn_latents", "galleries"]

_BEST: Final = 3
_RANDOM: Final = 3


def galleries(found: Sequence[Observed], seed: int) -> list[Gallery]:
    """Return a gallery for each backbone, site, architecture and L0; of every constraint the first seed there is."""
    caption = (
        f"{_BEST} of the latents told best, then {_RANDOM} of those asked about at random; marked where the latent "
        "fires, the stronger the larger its code. Windows are the strongest of those that it is described from."
    )

    def cards(cell: Observed) -> tuple[Card, ...]:
        best = sorted(_rows(cell), key=lambda row: (-row["accuracy"], row["latent"]))[:_BEST]
        random = _drawn(cell, _RANDOM, seed, "gallery")
        return (*(_card(row, ", told best") for row in best), *(_card(row, ", at random") for row in random))

    return _side_by_side(found, caption, cards)


def drawn_latents(found: Sequence[Observed], count: int, seed: int) -> list[Gallery]:
    """Return galleries of so many random latents of each SAE, drawn otherwise than those that a report shows."""
    caption = "Marked where the latent fires, the stronger the larger its code."

    def cards(cell: Observed) -> tuple[Card, ...]:
        return tuple(_card(row, "") for row in _drawn(cell, count, seed, "to rate"))

    return _side_by_side(found, caption, cards)


def _side_by_side(
    found: Sequence[Observed], caption: str, cards: Callable[[Observed], tuple[Card, ...]]
) -> list[Gallery]:
    groups: dict[tuple[str, str, str, float | None], dict[str, Observed]] = {}
    for cell in sorted(found, key=lambda cell: (not cell.trained, cell.seed)):
        place = (cell.backbone, cell.site, cell.architecture, cell.l0)
        groups.setdefault(place, {}).setdefault(cell.constraint, cell)
    result = []
    for (backbone, site, architecture, l0), cells in groups.items():
        sparsity = "" if l0 is None else f" · L0 {l0:g}"
        columns = tuple(Column(cell.constraint, cards(cell), cell.trained) for cell in cells.values())
        result.append(Gallery(f"{backbone} / {site} · {architecture}{sparsity}", caption, columns))
    return result


def _rows(cell: Observed) -> list[dict[str, Any]]:
    return [dict(zip(cell.items, row, strict=True)) for row in zip(*cell.items.values(), strict=True)]


def _drawn(cell: Observed, count: int, seed: int, use: str) -> list[dict[str, Any]]:
    rows = _rows(cell)
    order = torch.randperm(len(rows), generator=named_generator(seed, f"autointerp {use}"), device="cpu").tolist()
    return [rows[place] for place in order[:count]]


def _card(row: Mapping[str, Any], how: str) -> Card:
    contexts = [carried(*context) for context in json.loads(row["contexts"])]
    top = max((max(values) for _, values in contexts), default=0.0)
    excerpts = tuple(
        Excerpt(tuple(pieces), tuple(max(0.0, value) / top if top > 0 else 0.0 for value in values))
        for pieces, values in contexts
    )
    note = f"accuracy {row['accuracy']:.2f}"
    return Card(f"latent {row['latent']}{how}", row["description"], note, excerpts, row["accuracy"])
