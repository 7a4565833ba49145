"""A language model that describes latents and tells from the description where they fire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from saebench_plugins.metrics._interp_dialogues import Dialogue
from saebench_plugins.metrics._interp_judges import Description, Judge, Mark, Texts
from saebench_plugins.metrics._llm_client import Ask, Message, Reply
from saebench_plugins.metrics._windows import Window

__all__ = ["LlmJudge"]

_LIST_TOKENS: Final = 80
_TOKENS_A_WINDOW: Final = 6


@final
@dataclass(frozen=True)
class LlmJudge(Judge):
    """Asks for a phrase from the windows that are shown, then for a yes or no for each of the others.

    Attributes:
        ask: sends messages, with the tokens that the answer may have.
        texts: pieces of text of windows.
        dialogue: what is asked.
    """

    ask: Ask
    texts: Texts
    dialogue: Dialogue

    def describe(self, shown: Sequence[Window]) -> Description:
        """Ask for a phrase."""
        top = max(window.peak for window in shown)
        excerpts = "\n".join(
            f"{number}. {self.dialogue.show(pieces, window, top)}"
            for number, (pieces, window) in enumerate(zip(self.texts(shown), shown, strict=True), 1)
        )
        tally: Counter[str] = Counter()
        messages = [_system(self.dialogue.explain), _user(excerpts)]
        reply = self._asked(messages, self.dialogue.phrase_tokens, tally)
        tally["undescribed"] += reply.refused or not reply.text.strip()
        return Description(self.dialogue.phrase(reply.text), None, dict(tally))

    def marks(self, description: Description, windows: Sequence[Window]) -> tuple[list[Mark], Mapping[str, float]]:
        """Ask for a yes or no, some windows a call."""
        tally: Counter[str] = Counter()
        found: list[Mark] = []
        size = self.dialogue.per_call
        for start in range(0, len(windows), size):
            part = windows[start : start + size]
            excerpts = "\n".join(
                f"{number}. {self.dialogue.test(pieces, window)}"
                for number, (pieces, window) in enumerate(zip(self.texts(part), part, strict=True), 1)
            )
            question = f"Phrase: {description.text}\n\nExcerpts:\n{excerpts}"
            found += self._read([_system(self.dialogue.judge), _user(question)], len(part), tally)
        return found, dict(tally)

    def _read(self, messages: Sequence[Message], count: int, tally: Counter[str]) -> list[Mark]:
        """Return what was said of each window; None where two tries gave nothing that could be read."""
        room = max(_LIST_TOKENS, _TOKENS_A_WINDOW * count)
        reply = self._asked(messages, room, tally)
        answers = self._answers(reply, count)
        if answers is None and not reply.refused:
            tally["repaired"] += 1
            repair = _user(self.dialogue.repair.format(count=count))
            again = [*messages, {"role": "assistant", "content": reply.text}, repair]
            answers = self._answers(self._asked(again, room, tally), count)
        if answers is None:
            tally["refused" if reply.refused else "unparsed"] += count
            return [Mark(None, None)] * count
        return [Mark(bool(answer), None) for answer in answers]

    def _answers(self, reply: Reply, count: int) -> list[int] | None:
        return None if reply.refused or reply.cut else self.dialogue.read(reply.text, count)

    def _asked(self, messages: Sequence[Message], max_tokens: int, tally: Counter[str]) -> Reply:
        reply = self.ask(messages, max_tokens)
        tally["requests"] += 1
        tally["retries"] += reply.retries
        tally["cut"] += reply.cut
        tally["tokens_read"] += reply.tokens[0]
        tally["tokens_written"] += reply.tokens[1]
        return reply


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
