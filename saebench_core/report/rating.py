"""A sheet on which people rate latents without knowing whose they are, and the key that says it afterwards."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from saebench_core.interfaces.excerpt import Excerpt, Gallery
from saebench_core.report.templating import template

__all__ = ["SCALE", "Blind", "blinded", "key_of", "render_sheet", "sheet_digest"]

SCALE: Final = (
    "nothing in common",
    "little",
    "something, with many exceptions",
    "one thing, with few exceptions",
    "one clear thing",
)
"""What the ratings 1, 2, 3, 4 and 5 mean."""


class Blind(NamedTuple):
    """A latent on the sheet.

    Attributes:
        group: which comparison it belongs to.
        constraint: whose it is.
        column: which of the comparison's SAEs that is; the first that is trained is the one that others are held to.
        trained: whether nothing of that SAE was held random.
        latent: which one.
        score: what the metric gave it.
        excerpts: where it fires; all that raters see.
    """

    group: str
    constraint: str
    column: int
    trained: bool
    latent: str
    score: float | None
    excerpts: tuple[Excerpt, ...]


def blinded(galleries: Sequence[Gallery], seed: int) -> list[Blind]:
    """Return all latents of galleries in random order; their places are the numbers on the sheet, from one."""
    found = [
        Blind(gallery.title, column.label, place, column.trained, card.title, card.score, card.excerpts)
        for gallery in galleries
        for place, column in enumerate(gallery.columns)
        for card in column.cards
    ]
    random.Random(f"rating sheet {seed}").shuffle(found)
    return found


def sheet_digest(items: Sequence[Blind]) -> str:
    """Return what tells this sheet from others, in twelve characters."""
    return hashlib.sha256(json.dumps(items, default=asdict).encode()).hexdigest()[:12]


def key_of(items: Sequence[Blind]) -> dict[str, Any]:
    """Return what the sheet does not show, in the order of its numbers."""
    names = [name for name in Blind._fields if name != "excerpts"]
    return {
        "schema": 1,
        "sheet": sheet_digest(items),
        "items": [{name: getattr(item, name) for name in names} for item in items],
    }


def render_sheet(items: Sequence[Blind]) -> str:
    """Return the sheet: one page that opens from disk, asks the network for nothing and saves what is chosen."""
    page = template("rating.html.j2")
    return page.render(sheet=sheet_digest(items), excerpts=[item.excerpts for item in items], scale=SCALE)
