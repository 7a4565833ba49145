"""What a language model is asked: to describe a latent, and to tell from the description where it fires."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from saebench_plugins.metrics._windows import Window, carried

__all__ = ["DETECTION", "FUZZING", "PAPER", "SAEBENCH", "Dialogue"]

BRIGHT: Final = 0.3
"""Share of a window's largest code above which Delphi marks a token."""


@dataclass(frozen=True)
class Dialogue:
    """How a language model is asked.

    Attributes:
        explain: tells it to describe.
        phrase_tokens: tokens that a description may have.
        show: text of a window that is described, from its pieces, its codes and the largest code of all shown.
        phrase: takes the description out of the answer.
        judge: tells it to say where the latent fires.
        per_call: windows that one question may have.
        test: text of a window that is judged, from its pieces.
        read: one number for each window, 1 where the latent is said to fire; None if the answer has none.
        repair: what to say of an answer that cannot be read; ``{count}`` is the number of windows.
    """

    explain: str
    phrase_tokens: int
    show: Callable[[Sequence[str], Window, float], str]
    phrase: Callable[[str], str]
    judge: str
    per_call: int
    test: Callable[[Sequence[str], Window], str]
    read: Callable[[str, int], list[int] | None]
    repair: str


def marked(pieces: Sequence[str], chosen: Tensor) -> str:
    """Return a text with what is chosen between << and >>, neighbours together, without breaks of lines."""
    found, inside = "", False
    for piece, here in zip(*carried(pieces, chosen.tolist()), strict=True):
        if here != inside:
            inside = not inside
            lead = len(piece) - len(piece.lstrip(" ")) if inside else 0
            found += " " * lead + "<<" if inside else ">>"
            piece = piece[lead:]
        found += piece
    return _line(found + (">>" if inside else ""))


def read_list(text: str, count: int) -> list[int] | None:
    """Return a JSON list of zeros and ones of this length, if the text has one."""
    match = re.search(r"\[[\s\d,]*\]", text)
    if match is None:
        return None
    try:
        values = json.loads(match[0])
    except ValueError:
        return None
    return values if len(values) == count and set(values) <= {0, 1} else None


def read_numbers(text: str, count: int) -> list[int] | None:
    """Return 1 at the places that a text names, counted from one and apart by commas; ``None`` names none."""
    words = text.strip().rstrip(".").strip()
    if words.lower() == "none":
        return [0] * count
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", words):
        return None
    places = {int(word) for word in words.split(",")}
    return [int(place in places) for place in range(1, count + 1)] if places <= set(range(1, count + 1)) else None


def _line(text: str) -> str:
    """Return a text without breaks of lines, which would look like another excerpt."""
    return text.replace("\r", " ").replace("\n", " ").strip()


def _firing(pieces: Sequence[str], window: Window, top: float) -> str:
    return marked(pieces, window.values > 0)


def _with_codes(pieces: Sequence[str], window: Window, top: float) -> str:
    """Mark the larger codes, and list all in tenths of the largest of all windows."""
    codes = [
        f"({json.dumps(piece, ensure_ascii=False)}, {round(10 * value / top)})"
        for piece, value in zip(*carried(pieces, window.values.tolist()), strict=True)
        if value > 0
    ]
    return f"{marked(pieces, window.values > BRIGHT * window.peak)}\n   {', '.join(codes)}"


def _plain(pieces: Sequence[str], window: Window) -> str:
    return _line("".join(pieces))


def _as_marked(pieces: Sequence[str], window: Window) -> str:
    return _plain(pieces, window) if window.marks is None else marked(pieces, window.marks)


def _words(text: str) -> str:
    return " ".join(text.split())


def _after(mark: str) -> Callable[[str], str]:
    """Take what follows a mark, all if there is none."""
    return lambda text: _words(text.split(mark)[-1]).strip(' "')


_LIST: Final = (
    "Answer with a JSON list of as many numbers as there are excerpts, in their order: 1 if {yes}, 0 if not. Write "
    "nothing else."
)
_REPAIR_LIST: Final = "That was not a JSON list of {count} zeros and ones. Write only the list."

PAPER: Final = Dialogue(
    explain=(
        "You study single units of a language model. You are shown excerpts of text in which one unit is active, the "
        "most active first; the words at which it is active stand between << and >>. Say what these places have in "
        "common, in one phrase of at most twenty words: a topic, a kind of word, a grammatical role or a context. Name "
        "the concept alone. Do not mention excerpts, markings or units, do not list examples, and write nothing else."
    ),
    phrase_tokens=60,
    show=_firing,
    phrase=_words,
    judge=(
        "A unit of a language model is described by a phrase. You get numbered excerpts of text. Decide for each "
        f"whether the unit would be active anywhere in it. {_LIST.format(yes='it would be active')}"
    ),
    per_call=10,
    test=_plain,
    read=read_list,
    repair=_REPAIR_LIST,
)

SAEBENCH: Final = Dialogue(
    explain=(
        "You study neurons of a language model, each of which looks for something in short texts: a word, a part of a "
        "word, or a concept. You are shown texts in which one neuron is active, the most active first; what it is "
        "active at stands between << and >>. Answer in the form: This neuron activates on ..., with one simple "
        "sentence of at most twenty words. Do not list examples. Answers may look like these: This neuron activates on "
        "the word 'knows' in rhetorical questions. This neuron activates on verbs of decision and preference. This "
        "neuron activates on the part 'Ent' at the start of words. This neuron activates on text about economics."
    ),
    phrase_tokens=30,
    show=_firing,
    phrase=_after("activates on"),
    judge=(
        "A neuron of a language model is described by what it activates on. You get numbered texts. Say in which of "
        "them the neuron would be active. Answer with their numbers alone, apart by commas, or with None if there are "
        "none. Write nothing else."
    ),
    per_call=1 << 30,
    test=_plain,
    read=read_numbers,
    repair="That was neither a list of numbers from 1 to {count}, apart by commas, nor None. Write only that.",
)

DETECTION: Final = Dialogue(
    explain=(
        "You study single latents of a language model. You are shown excerpts of text, from strong ones to weak ones. "
        "Tokens at which the latent is strongly active stand between << and >>; below each excerpt are all tokens at "
        "which it is active, with a number from 0 to 10 for how much. Find what makes it active: what the tokens are, "
        "or what stands around them. Be short, name no examples, and do not mention markings or numbers. End with one "
        "line of the form: [EXPLANATION]: ..."
    ),
    phrase_tokens=200,
    show=_with_codes,
    phrase=_after("[EXPLANATION]:"),
    judge=(
        "A latent of a language model is described by a phrase. You get numbered excerpts of text. Decide for each "
        f"whether it holds what the phrase describes. {_LIST.format(yes='it does')}"
    ),
    per_call=5,
    test=_plain,
    read=read_list,
    repair=_REPAIR_LIST,
)

FUZZING: Final = Dialogue(
    explain=DETECTION.explain,
    phrase_tokens=DETECTION.phrase_tokens,
    show=DETECTION.show,
    phrase=DETECTION.phrase,
    judge=(
        "A latent of a language model is described by a phrase. You get numbered excerpts of text in which some tokens "
        "stand between << and >>. Decide for each whether the marked tokens are those that the phrase describes. "
        f"{_LIST.format(yes='they are')}"
    ),
    per_call=5,
    test=_as_marked,
    read=read_list,
    repair=_REPAIR_LIST,
)
