"""Words of one token, their activations, and linear probes of their first letters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saebench_core import EditableModel, MetricContext, Split, TokenBatch, named_generator

__all__ = ["LetterProbe", "fit_letters", "read_words", "words_of_corpus"]

_AT_ONCE: Final = 64
_MAX_TOKENS: Final = 256
_TEST_SHARE: Final = 0.2
_FEWEST: Final = 10
_WORD: Final = re.compile(r"[a-z]{3,}")
_QUESTION: Final = " has the first letter:"


class LetterProbe(NamedTuple):
    """A probe that tells a letter from all others.

    Attributes:
        direction: its weights, of norm one.
        found: words of which it says that they begin with the letter.
        tested: words that it did not learn from.
        f1: its F1 on those.
    """

    direction: Float[Tensor, " d_in"]
    found: Bool[Tensor, " words"]
    tested: Bool[Tensor, " words"]
    f1: float


def words_of_corpus(model: EditableModel, split: Split, tokens: int, count: int) -> list[str]:
    """Return the most frequent words of a part of the corpus, in lower case, at least three letters long."""
    found: Counter[str] = Counter()
    seen = read = 0
    while seen < tokens:
        batch = model.sequences(split, read, _AT_ONCE)
        if not len(batch.ids):
            break
        read, seen = read + len(batch.ids), seen + batch.ids.numel()
        for text in model.words(batch.ids):
            found.update(_WORD.findall(text.lower()))
    return [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]]


def read_words(
    model: EditableModel, context: MetricContext, words: Sequence[str], count: int, examples: int, seed: int
) -> tuple[list[str], Float[Tensor, "words d_in"]]:
    """Return the first words that are one token, and the activations there, with answered examples before them."""
    generator = named_generator(seed, "absorption examples")
    kept: list[str] = []
    rows: list[Tensor] = []
    for start in range(0, len(words), _AT_ONCE):
        part = words[start : start + _AT_ONCE]
        texts = [_prompt(words, word, examples, generator) for word in part]
        ends = [len(text) - len(_QUESTION) - 1 for text in texts]
        last = model.locate(texts, ends)
        first = model.locate(texts, [end - len(word) + 1 for end, word in zip(ends, part, strict=True)])
        tokens = model.tokenise(texts, _MAX_TOKENS)
        one = (first == last) & (last < tokens.ids.shape[1])
        kept += [word for word, single in zip(part, one.tolist(), strict=True) if single]
        if one.any():
            tokens = TokenBatch(*(tensor[one.to(tensor.device)] for tensor in tokens))
            where = last[one][:, None].to(tokens.ids.device)
            there = torch.zeros_like(tokens.kept).scatter(1, where, True)
            rows.append(model.read(tokens._replace(kept=there), context.site).to("cpu", torch.float32))
        context.progress("absorption: words", min(len(kept), count), count)
        if len(kept) >= count:
            break
    return kept[:count], torch.cat(rows)[:count] if rows else torch.zeros(0, 1, device="cpu")


def _prompt(words: Sequence[str], word: str, examples: int, generator: torch.Generator) -> str:
    """Return answered examples of other words, and the question about this one."""
    drawn = torch.randint(len(words), (examples + 1,), generator=generator, device="cpu").tolist()
    others = [words[place] for place in drawn if words[place] != word][:examples]
    answered = "".join(f"{other}{_QUESTION} {other[0].upper()}\n" for other in others)
    return f"{answered}{word}{_QUESTION}"


def fit_letters(words: Sequence[str], rows: Float[Tensor, "words d_in"], seed: int) -> dict[str, LetterProbe]:
    """Fit a logistic regression for every letter that enough words begin with; a fifth of the words test it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    if not words:
        return {}
    order = torch.randperm(len(words), generator=named_generator(seed, "absorption test"), device="cpu")
    tested = torch.zeros(len(words), dtype=torch.bool, device="cpu")
    tested[order[: round(_TEST_SHARE * len(words))]] = True
    mean, spread = rows[~tested].mean(0), rows[~tested].std().clamp(min=1e-12)
    scaled = ((rows - mean) / spread).to(torch.float64).numpy()
    counts: Mapping[str, int] = Counter(word[0] for word in words)
    found = {}
    for letter in sorted(letter for letter, number in counts.items() if number >= _FEWEST):
        labels = torch.tensor([word[0] == letter for word in words], device="cpu")
        if not (labels & tested).any() or not (labels & ~tested).any():
            continue
        model = LogisticRegression(max_iter=1000).fit(scaled[~tested.numpy()], labels[~tested].numpy())
        said = torch.from_numpy(model.predict(scaled))
        f1 = float(f1_score(labels[tested].numpy(), said[tested].numpy(), zero_division=0))
        weights = torch.from_numpy(model.coef_[0]).to(torch.float32)
        found[letter] = LetterProbe(torch.nn.functional.normalize(weights, dim=0), said, tested, f1)
    return found
