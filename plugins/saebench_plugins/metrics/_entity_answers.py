"""Whether a model's words give an attribute's value: RAVEL's special cases, and abbreviations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["decided", "gives"]

_ALIASES: Final = {
    "united states": ("united states", "usa", "us", "u.s", "america"),
    "united kingdom": ("united kingdom", "uk", "u.k", "england", "britain", "great britain"),
    "south korea": ("south korea", "korea"),
    "north america": ("north america", "na", "america"),
    "mandarin": ("mandarin", "chinese"),
}
_COORDINATES: Final = frozenset({"Latitude", "Longitude"})
_ABBREVIATION: Final = 3
_DEGREES: Final = 2


def gives(text: str, value: str, attribute: str) -> bool:
    """Say whether the words up to a quotation mark give the value: one is the beginning of the other.

    Latitudes and longitudes may be off by two degrees, a list of languages is met by any of them, and a time zone by
    its offset from UTC.
    """
    answer = _answer(text)
    if not answer:
        return False
    if attribute in _COORDINATES:
        return _near(answer, value)
    if attribute == "Timezone" and (offset := re.match(r"(?:utc|gmt)\s*([+-]\s*\d{1,2})(?::?(\d\d))?", answer)):
        hours = int(offset[1].replace(" ", ""))
        minutes = 60 * hours + (-1 if hours < 0 else 1) * int(offset[2] or 0)
        return minutes in _offsets(value)
    return any(_meets(answer, known) for known in _accepted(value, attribute))


def _meets(answer: str, known: str) -> bool:
    """Say whether one begins the other; an abbreviation must be a whole word, lest "uk" be met by "Ukraine"."""
    if len(known) <= _ABBREVIATION:
        return re.match(rf"{re.escape(known)}(?![a-z])", answer) is not None
    return answer.startswith(known) or known.startswith(answer)


def decided(text: str, value: str, attribute: str) -> bool:
    """Say whether further words could not change what `gives` says."""
    if attribute in {*_COORDINATES, "Timezone"}:
        return '"' in text
    answer = _answer(text)
    if '"' in text:
        return True
    return len(answer) > _ABBREVIATION and not any(
        len(answer) < len(known) and known.startswith(answer) for known in (*_accepted(value, attribute), "the ")
    )


def _answer(text: str) -> str:
    return _plain(text.split('"')[0])


def _plain(text: str) -> str:
    plain = text.strip().lower()
    return plain.removeprefix("the ").strip()


def _accepted(value: str, attribute: str) -> Iterable[str]:
    values = value.split(",") if attribute == "Language" else [value]
    for one in values:
        plain = _plain(one)
        yield from _ALIASES.get(plain, (plain,))


def _near(answer: str, value: str) -> bool:
    found, known = (re.match(r"[+-]?\d+(?:\.\d+)?", text.strip()) for text in (answer, value))
    return found is not None and known is not None and abs(float(found[0]) - float(known[0])) <= _DEGREES


def _offsets(zone: str) -> set[int]:
    """Return a zone's offsets from UTC in winter and summer, in minutes."""
    try:
        moments = (datetime(2024, month, 1, tzinfo=UTC).astimezone(ZoneInfo(zone)) for month in (1, 7))
        found = (moment.utcoffset() for moment in moments)
        return {int(offset.total_seconds() // 60) for offset in found if offset is not None}
    except (ZoneInfoNotFoundError, ValueError):
        return set()
