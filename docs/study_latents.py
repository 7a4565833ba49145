"""Contexts of latents, from stored galleries: text with marks, as HTML in a page (paper figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from typing import Any, Final

from saebench_core import Gallery

EXCERPTS: Final = 2
PALEST: Final = 0.05


def kept(gallery: Gallery) -> Mapping[str, Any]:
    """Return a gallery as it is stored: plain, with the excerpts that a page shows."""
    plain = asdict(gallery)
    for column in plain["columns"]:
        for card in column["cards"]:
            card["excerpts"] = card["excerpts"][:EXCERPTS]
    return plain


def latents(gallery: Mapping[str, Any], asked: Mapping[str, str]) -> str:
    """Return the latents of SAEs, one after another: what each is said to stand for, its score, and where it fires.

    Args:
        gallery: a stored gallery.
        asked: ``constraint`` (columns, in this order).

    Raises:
        KeyError: for a constraint that the gallery has not.
    """
    columns = {column["label"]: column for column in gallery["columns"]}
    wanted = asked["constraint"].split(",")
    if missing := set(wanted) - set(columns):
        raise KeyError(f"constraint: {sorted(missing)}; there are: {sorted(columns)}")
    return "\n\n".join(
        f"**{name}**\n\n" + "\n\n".join(_card(card) for card in columns[name]["cards"]) for name in wanted
    )


def _card(card: Mapping[str, Any]) -> str:
    head = f"{card['title']}: {card['note']}" + (f'; "{card["text"]}"' if card["text"] else "")
    contexts = "".join(f"<br>... {_marked(excerpt)} ..." for excerpt in card["excerpts"])
    return f'<div class="latent"><em>{_flat(head)}</em>{contexts}</div>'


def _marked(excerpt: Mapping[str, Any]) -> str:
    """Mark pieces; a piece without text begins a character that ends in the next one, which has its mark."""
    found, waiting = "", 0.0
    for text, strength in zip(excerpt["pieces"], excerpt["strengths"], strict=True):
        waiting = max(waiting, strength)
        if text:
            found += _piece(text, waiting)
            waiting = 0.0
    return found


def _piece(text: str, strength: float) -> str:
    """Escape a piece of text; a line's end would end the HTML block, so it is told by a sign."""
    flat = _flat(text)
    if strength < PALEST:
        return flat
    return f'<mark style="background: rgba(255, 140, 0, {0.1 + 0.6 * strength:.2f}); color: inherit">{flat}</mark>'


def _flat(text: str) -> str:
    return escape(text).replace("\n", "⏎").replace("\r", "").replace("\t", " ")
