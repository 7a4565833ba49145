"""A language model that describes latents and tells from the description where they fire."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from saebench_plugins.metrics._interp_judges import Description, Judge, Mark, Texts
from saebench_plugins.metrics._llm_client import Ask, Message, Reply
from saebench_plugins.metrics._windows import Window

__all__ = ["LlmJudge", "Mode"]

Mode = Literal["paper", "detection"]
_PER_CALL: Final[Mapping[Mode, int]] = {"paper": 10, "detection": 5}
_PHRASE_TOKENS: Final = 60
_LIST_TOKENS: Final = 80

_EXPLAIN: Final = (
    "You study single units of a language model. You are shown excerpts of text in which one unit is active, the most "
    "active first; the words at which it is active stand between << and >>. Say what these places have in common, in "
    "one phrase of at most twenty words: a topic, a kind of word, a grammatical role or a context. Name the concept "
    "alone. Do not mention excerpts, markings or units, do not list examples, and write nothing else."
)
_JUDGE: Final = (
    "A unit of a language model is described by a phrase. You get numbered excerpts of text. Decide for each whether "
    "the unit would be active anywhere in it. Answer with a JSON list of as many numbers as there are excerpts, in "
    "their order: 1 if it would be active, 0 if not. Write nothing else."
)
_REPAIR: Final = "That was not a JSON list of {count} zeros and ones. Write only the list."


@final
@dataclass(frozen=True)
class LlmJudge(Judge):
    """The paper's way (section 4.4): a phrase from the windows with the largest codes, then a yes or no for each other.

    Attributes:
        ask: sends messages, with the tokens that the answer may have.
        texts: pieces of text of windows.
        mode: ``paper`` judges ten windows a call, ``detection`` five (Delphi).
    """

    ask: Ask
    texts: Texts
    mode: Mode = "paper"

    def describe(self, shown: Sequence[Window]) -> Description:
        """Ask for a phrase."""
        excerpts = "\n".join(
            f"{number}. {_marked(pieces, window)}"
            for number, (pieces, window) in enumerate(zip(self.texts(shown), shown, strict=True), 1)
        )
        tally: Counter[str] = Counter()
        reply = self._asked([_system(_EXPLAIN), _user(excerpts)], _PHRASE_TOKENS, tally)
        return Description(" ".join(reply.text.split()), None, dict(tally))

    def marks(self, description: Description, windows: Sequence[Window]) -> tuple[list[Mark], Mapping[str, float]]:
        """Ask for a yes or no, some windows a call."""
        tally: Counter[str] = Counter()
        found: list[Mark] = []
        size = _PER_CALL[self.mode]
        for start in range(0, len(windows), size):
            pieces = self.texts(windows[start : start + size])
            excerpts = "\n".join(f"{number}. {_line(''.join(words))}" for number, words in enumerate(pieces, 1))
            messages = [_system(_JUDGE), _user(f"Phrase: {description.text}\n\nExcerpts:\n{excerpts}")]
            found += self._read(messages, len(pieces), tally)
        return found, dict(tally)

    def _read(self, messages: Sequence[Message], count: int, tally: Counter[str]) -> list[Mark]:
        """Return what was said of each window; None where two tries gave nothing that could be read."""
        reply = self._asked(messages, _LIST_TOKENS, tally)
        answers = None if reply.refused else _parsed(reply.text, count)
        if answers is None and not reply.refused:
            tally["repaired"] += 1
            again = [*messages, {"role": "assistant", "content": reply.text}, _user(_REPAIR.format(count=count))]
            answers = _parsed(self._asked(again, _LIST_TOKENS, tally).text, count)
        if answers is None:
            tally["refused" if reply.refused else "unparsed"] += count
            return [Mark(None, None)] * count
        return [Mark(bool(answer), None) for answer in answers]

    def _asked(self, messages: Sequence[Message], max_tokens: int, tally: Counter[str]) -> Reply:
        reply = self.ask(messages, max_tokens)
        tally["requests"] += 1
        tally["retries"] += reply.retries
        tally["tokens_read"] += reply.tokens[0]
        tally["tokens_written"] += reply.tokens[1]
        return reply


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _line(text: str) -> str:
    """Return a text without breaks of lines, which would look like another excerpt."""
    return text.replace("\r", " ").replace("\n", " ").strip()


def _marked(pieces: Sequence[str], window: Window) -> str:
    """Put what fires between << and >>, neighbours together."""
    found, inside = "", False
    for piece, value in zip(pieces, window.values.tolist(), strict=True):
        if (value > 0) != inside:
            inside = not inside
            lead = len(piece) - len(piece.lstrip(" ")) if inside else 0
            found += " " * lead + "<<" if inside else ">>"
            piece = piece[lead:]
        found += piece
    return _line(found + (">>" if inside else ""))


def _parsed(text: str, count: int) -> list[int] | None:
    """Return a list of zeros and ones of this length, if the text has one."""
    match = re.search(r"\[[\s\d,]*\]", text)
    if match is None:
        return None
    try:
        values = json.loads(match[0])
    except ValueError:
        return None
    return values if len(values) == count and set(values) <= {0, 1} else None
