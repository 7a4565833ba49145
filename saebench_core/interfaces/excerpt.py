"""Texts in which latents fire, side by side: whoever has them says what is to be seen, the report draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from saebench_core.errors import PluginError

__all__ = ["Card", "Column", "Excerpt", "Gallery"]


@final
@dataclass(frozen=True)
class Excerpt:
    """A piece of text, and how strongly a latent fires in it.

    Attributes:
        pieces: text of each token, with its blanks.
        strengths: of each token, from 0 to 1.
    """

    pieces: tuple[str, ...]
    strengths: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.strengths):
            raise PluginError(f"an excerpt has {len(self.pieces)} pieces and {len(self.strengths)} strengths")
        if not all(math.isfinite(strength) and 0 <= strength <= 1 for strength in self.strengths):
            raise PluginError("strengths of an excerpt must lie between 0 and 1")


@final
@dataclass(frozen=True)
class Card:
    """One latent.

    Attributes:
        title: which one, and how it was chosen.
        text: what it is said to stand for; may be empty.
        note: its score, in words.
        excerpts: where it fires.
        score: its score as a number, the larger the better; None where it has none.
    """

    title: str
    text: str
    note: str
    excerpts: tuple[Excerpt, ...]
    score: float | None = None


@final
@dataclass(frozen=True)
class Column:
    """Latents of one SAE.

    Attributes:
        label: whose they are, such as a constraint.
        cards: the latents.
        trained: whether nothing was held random.
    """

    label: str
    cards: tuple[Card, ...]
    trained: bool = False


@final
@dataclass(frozen=True)
class Gallery:
    """Latents of SAEs that are compared, a column each.

    Attributes:
        title: what is shown.
        caption: one line on how to read it.
        columns: the SAEs.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
