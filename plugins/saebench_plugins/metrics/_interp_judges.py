"""Who describes latents and tells from a description where they fire: a language model, or proxies without one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_plugins.metrics._text_encoder import Embed
from saebench_plugins.metrics._windows import Window

__all__ = ["Description", "EmbeddingJudge", "Judge", "Mark", "TokenJudge"]

_TELLING: Final = 0.5
_SHOWN_TOKENS: Final = 8

Texts = Callable[[Sequence[Window]], list[list[str]]]
"""Returns the pieces of text of every window's tokens."""


class Mark(NamedTuple):
    """What is said of one window.

    Attributes:
        active: whether the latent fires in it; None where no answer could be read.
        score: the larger, the surer; None where the judge gives none.
    """

    active: bool | None
    score: float | None


@dataclass(frozen=True)
class Description:
    """What a latent is taken to stand for.

    Attributes:
        text: in words.
        inside: what the judge itself works with.
        tally: counts of what was asked to make it.
    """

    text: str
    inside: Any = None
    tally: Mapping[str, float] = field(default_factory=dict)


class Judge(ABC):
    """Describes latents, and tests descriptions."""

    @abstractmethod
    def describe(self, shown: Sequence[Window]) -> Description:
        """Describe a latent by the windows with its largest codes."""

    @abstractmethod
    def marks(self, description: Description, windows: Sequence[Window]) -> tuple[list[Mark], Mapping[str, float]]:
        """Say in which windows a described latent fires, without its codes; also counts of what was asked."""


@final
@dataclass(frozen=True)
class TokenJudge(Judge):
    """A proxy: single tokens tell. A window's score is the largest mean code that one of its tokens had where shown.

    It is active where it has a token at which the latent fired in at least half of the places shown.
    """

    texts: Texts

    def describe(self, shown: Sequence[Window]) -> Description:
        """Collect the tokens at which the latent fires."""
        codes: dict[int, list[float]] = defaultdict(list)
        for window in shown:
            for token, value in zip(window.ids.tolist(), window.values.tolist(), strict=True):
                codes[token].append(value)
        means = {token: sum(values) / len(values) for token, values in codes.items() if max(values) > 0}
        telling = {token for token in means if sum(value > 0 for value in codes[token]) >= _TELLING * len(codes[token])}
        first = sorted(telling, key=lambda token: (-means[token], token))[:_SHOWN_TOKENS]
        pieces = self.texts(
            [Window(-1, torch.tensor([token], device="cpu"), torch.zeros(1, device="cpu")) for token in first]
        )
        return Description(" ".join(repr(piece[0]) for piece in pieces), (means, telling))

    def marks(self, description: Description, windows: Sequence[Window]) -> tuple[list[Mark], Mapping[str, float]]:
        """Look for the tokens."""
        means, telling = description.inside
        found = []
        for window in windows:
            tokens = window.ids.tolist()
            found.append(
                Mark(not telling.isdisjoint(tokens), max((means.get(token, 0.0) for token in tokens), default=0.0))
            )
        return found, {}


@final
@dataclass(frozen=True)
class EmbeddingJudge(Judge):
    """A proxy: texts about the same thing are alike. A window's score is its cosine with the mean of those shown.

    The encoder sees the tokens around the largest code of what is shown, and whole windows to be judged. Half of the
    windows are active, so the half with the larger scores is called so.

    Attributes:
        texts: gives tokens as text.
        embed: the encoder.
        embedded: of every window of the grid by number, made once for all SAEs.
        around: tokens on either side of the largest code that are embedded.
    """

    texts: Texts
    embed: Embed
    embedded: Float[Tensor, "windows width"]
    around: int = 8

    def describe(self, shown: Sequence[Window]) -> Description:
        """Embed what is around the peaks."""
        pieces = self.texts(shown)
        parts = []
        for window, words in zip(shown, pieces, strict=True):
            peak = int(window.values.argmax())
            parts.append("".join(words[max(0, peak - self.around) : peak + self.around + 1]))
        mean = self.embed(parts).mean(0)
        return Description("", torch.nn.functional.normalize(mean, dim=0))

    def marks(self, description: Description, windows: Sequence[Window]) -> tuple[list[Mark], Mapping[str, float]]:
        """Compare every window with the description."""
        scores = self.embedded[[window.number for window in windows]] @ description.inside
        order = scores.argsort(descending=True, stable=True).tolist()
        upper = set(order[: len(order) // 2])
        return [Mark(place in upper, float(score)) for place, score in enumerate(scores)], {}
