"""Backbones that the kit brings itself: known features, a language model, a vision model, and one that is none of them.

They are a few kilobytes, drawn from fixed seeds, and do exactly what their contracts say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saebench_core.interfaces.backbone import ActivationBatch, Backbone, BackboneDescription, Patch, TokenBatch
from saebench_core.interfaces.constraint import Truth
from saebench_core.interfaces.context import Context, Split
from saebench_core.kernels import Codes, Selection
from saebench_core.randomness import named_generator

__all__ = [
    "WORLDS",
    "BareBackbone",
    "PlantedBackbone",
    "TinyLanguageModel",
    "TinyVisionModel",
    "planted_rows",
    "planted_truth",
]

_ROWS: Final[Mapping[Split, int]] = {"train": 320, "calibration": 320, "evaluation": 320}
_PART: Final = 64
_WIDTH: Final = 16
_ROOTS: Final = 4


def planted_rows(count: int, d_in: int, role: str = "rows") -> Float[Tensor, "rows d_in"]:
    """Return sparse sums of twice as many directions as there are dimensions, off centre, of mean square norm one."""
    draw, truth = named_generator("conformance", role, d_in), planted_truth(d_in)
    fires = torch.rand(count, 2 * d_in, generator=draw, device="cpu") < truth.probabilities
    sizes = 0.7 + torch.rand(count, 2 * d_in, generator=draw, device="cpu")
    x = (fires * sizes) @ truth.features + 0.1
    return x / x.square().sum(1).mean().sqrt()


def planted_truth(d_in: int) -> Truth:
    """Return what `planted_rows` are made of."""
    features = torch.randn(2 * d_in, d_in, generator=named_generator("conformance", "features", d_in), device="cpu")
    probabilities = torch.full((2 * d_in,), 2.5 / (2 * d_in), device="cpu")
    return Truth(torch.nn.functional.normalize(features, dim=1), probabilities)


def _orthonormal(draw: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    rows: Tensor = torch.linalg.qr(draw).Q.T.contiguous()
    return rows


class _Stored(Backbone):
    """Rows that lie in memory, at one site."""

    modality: Literal["synthetic", "language", "vision", "other"] = "other"
    site: str = "values"

    def _values(self, split: Split) -> Float[Tensor, "rows d_in"]:
        return planted_rows(_ROWS[split], _WIDTH, split)

    def describe(self) -> BackboneDescription:
        """Return the one site."""
        return BackboneDescription(self.modality, {self.site: _WIDTH}, regenerates=True)

    def prepare(self, context: Context) -> None:
        """There is nothing to load."""

    def rows_available(self, site: str, split: Split) -> int:
        """Return the rows of a split."""
        return len(self._values(split))

    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield rows in parts."""
        for part in torch.split(self._values(split)[start : start + rows], _PART):
            yield ActivationBatch(part, part)


class BareBackbone(_Stored):
    """Rows, and nothing else is known."""


class PlantedBackbone(_Stored):
    """Sums of orthonormal features; offers `GroundTruth`."""

    modality = "synthetic"

    def features(self) -> Float[Tensor, "n_features d_in"]:
        """Return the directions."""
        draw = torch.randn(_WIDTH, _WIDTH, generator=named_generator("conformance", "basis"), device="cpu")
        return _orthonormal(draw)

    def probabilities(self) -> Float[Tensor, " n_features"]:
        """Return how often each feature fires."""
        return torch.linspace(0.1, 0.4, _WIDTH, device="cpu")

    def _dense(self, split: Split) -> Float[Tensor, "rows n_features"]:
        draw = named_generator("conformance", "codes", split)
        fires = torch.rand(_ROWS[split], _WIDTH, generator=draw, device="cpu") < PlantedBackbone.probabilities(self)
        return fires * (0.5 + torch.rand(_ROWS[split], _WIDTH, generator=draw, device="cpu"))

    def codes(self, split: Split, start: int, rows: int) -> Codes:
        """Return the true coefficients of some rows."""
        dense = self._dense(split)[start : start + rows]
        at, cols = dense.nonzero(as_tuple=True)
        return Codes(Selection(at, cols, dense.shape[0], dense.shape[1]), dense[at, cols])

    def _values(self, split: Split) -> Float[Tensor, "rows d_in"]:
        return self._dense(split) @ self.features()


class PlantedTree(PlantedBackbone):
    """Four features with three children each, which fire only where their parent does; offers `FeatureTree` too."""

    def parents(self) -> Int[Tensor, " n_features"]:
        """Return the parents."""
        roots = torch.arange(_ROOTS, device="cpu")
        return torch.cat([torch.full_like(roots, -1), roots.repeat_interleave(_WIDTH // _ROOTS - 1)])

    def probabilities(self) -> Float[Tensor, " n_features"]:
        """Return how often each feature fires."""
        drawn, parents = super().probabilities(), self.parents()
        return torch.where(parents < 0, drawn, drawn * drawn[parents.clamp(min=0)])

    def _dense(self, split: Split) -> Float[Tensor, "rows n_features"]:
        drawn, parents = super()._dense(split), self.parents()
        return drawn * ((parents < 0) | (drawn[:, parents.clamp(min=0)] > 0))


class TinyLanguageModel(_Stored):
    """Embeddings that tell the next token; offers `EditableModel`. Token 0 begins each sequence and is no row."""

    modality = "language"
    site = "layers.0"
    vocabulary: Final = _WIDTH
    length: Final = 9
    count: Final = 40

    def _embeddings(self) -> Float[Tensor, "vocabulary d_in"]:
        draw = torch.randn(_WIDTH, _WIDTH, generator=named_generator("conformance", "embeddings"), device="cpu")
        return _orthonormal(draw)

    def _following(self, ids: Tensor) -> Tensor:
        return (ids * 4 + 2) % (self.vocabulary - 1) + 1  # one after another, through all but the first

    def tokenise(self, texts: Sequence[str], max_tokens: int, keep: Literal["start", "end"] = "start") -> TokenBatch:
        """Return a token a word."""
        words = [[sum(word.encode()) % (self.vocabulary - 1) + 1 for word in text.split()] for text in texts]
        rest = max_tokens - 1
        cut = [[0, *(ids[:rest] if keep == "start" else ids[max(0, len(ids) - rest) :])] for ids in words]
        longest = max((len(ids) for ids in cut), default=0)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in cut], dtype=torch.int64, device="cpu")
        return self._batch(ids, torch.tensor([len(ids) for ids in cut], device="cpu"))

    def _batch(self, ids: Tensor, lengths: Tensor) -> TokenBatch:
        places = torch.arange(ids.shape[1], device="cpu")
        attention = places < lengths[:, None]
        return TokenBatch(ids, attention, attention & (places > 0))

    def sequences(self, split: Split, start: int, count: int) -> TokenBatch:
        """Return sequences in which one token in five is not the one that follows."""
        draw = named_generator("conformance", "sequences", split)
        ids = torch.zeros(self.count, self.length, dtype=torch.int64, device="cpu")
        for place in range(1, self.length):
            other = torch.randint(1, self.vocabulary, (self.count,), generator=draw, device="cpu")
            kept = torch.rand(self.count, generator=draw, device="cpu") < 0.8
            ids[:, place] = torch.where(kept & (place > 1), self._following(ids[:, place - 1]), other)
        lengths = torch.randint(self.length - 3, self.length + 1, (self.count,), generator=draw, device="cpu")
        chosen = slice(start, start + count)
        return self._batch(ids[chosen], lengths[chosen])

    def _hidden(self, tokens: TokenBatch) -> Float[Tensor, "sequences length d_in"]:
        hidden = 3 * self._embeddings()[tokens.ids]
        hidden[:, 1:] = hidden[:, 1:] + 0.3 * hidden[:, :-1].clone()
        return hidden

    def read(self, tokens: TokenBatch, site: str) -> Float[Tensor, "kept d_in"]:
        """Return the activations of the kept tokens."""
        return self._hidden(tokens)[tokens.kept]

    def logits(
        self, tokens: TokenBatch, site: str, patch: Patch | None
    ) -> Float[Tensor, "sequences length vocabulary"]:
        """Return the logits, kept activations patched."""
        hidden = self._hidden(tokens)
        if patch is not None:
            hidden = hidden.clone()
            hidden[tokens.kept] = patch(hidden[tokens.kept])
        return self._unembedded(hidden)

    def _unembedded(self, hidden: Tensor) -> Tensor:
        heads = torch.empty(self.vocabulary, _WIDTH, device="cpu")
        heads[self._following(torch.arange(1, self.vocabulary, device="cpu"))] = self._embeddings()[1:]
        heads[0] = -self._embeddings().mean(0)
        return hidden @ heads.T

    def locate(self, texts: Sequence[str], characters: Sequence[int]) -> Int[Tensor, " texts"]:
        """Return the place of the word that holds a character."""
        pairs = zip(texts, characters, strict=True)
        return torch.tensor([len(text[: character + 1].split()) for text, character in pairs], device="cpu")

    def states(self, tokens: TokenBatch, site: str) -> Float[Tensor, "sequences length d_in"]:
        """Return the activations at every position."""
        return self._hidden(tokens)

    def resume(
        self,
        tokens: TokenBatch,
        site: str,
        states: Float[Tensor, "sequences length d_in"],
        own: Int[Tensor, " sequences"] | None = None,
    ) -> Float[Tensor, "sequences vocabulary"]:
        """Return the logits after each last token."""
        last = tokens.attention.sum(1) - 1
        return self._unembedded(states[torch.arange(len(states), device="cpu"), last])

    def logits_from(
        self, tokens: TokenBatch, site: str, states: Float[Tensor, "sequences length d_in"]
    ) -> Float[Tensor, "sequences length vocabulary"]:
        """Return the logits at every position."""
        return self._unembedded(states)

    def generate(
        self,
        tokens: TokenBatch,
        count: int,
        site: str,
        states: Float[Tensor, "sequences length d_in"] | None,
        own: Int[Tensor, " sequences"] | None = None,
    ) -> Int[Tensor, "sequences count"]:
        """Return the likeliest next token, and what follows it."""
        chosen = [self.resume(tokens, site, self._hidden(tokens) if states is None else states).argmax(-1)]
        while len(chosen) < count:
            chosen.append(self._following(chosen[-1]))
        return torch.stack(chosen, dim=1)

    def words(self, ids: Int[Tensor, "sequences count"]) -> list[str]:
        """Return a word a token."""
        return ["".join(self.pieces(row)).strip() for row in ids]

    def pieces(self, ids: Int[Tensor, " count"]) -> list[str]:
        """Return a word a token, with a blank before it."""
        return [f" w{token}" if token else "" for token in ids.tolist()]

    def _values(self, split: Split) -> Float[Tensor, "rows d_in"]:
        return self.read(self.sequences(split, 0, self.count), self.site)


class TinyVisionModel(_Stored):
    """Images of three classes, their halves as two tokens; offers `VisionModel`."""

    modality = "vision"
    site = "blocks.0"
    count: Final = 90

    def _patterns(self) -> Float[Tensor, "classes pixels"]:
        draw = torch.randn(3, 2 * _WIDTH, generator=named_generator("conformance", "patterns"), device="cpu")
        return torch.nn.functional.normalize(draw, dim=1)

    def image_count(self, split: Split) -> int:
        """Return the number of images."""
        return self.count

    def labels(self, split: Split) -> Int[Tensor, " images"]:
        """Return every image's class."""
        return torch.arange(self.count, device="cpu") % 3

    def class_names(self) -> Sequence[str]:
        """Return the names of the classes."""
        return ("ape", "bee", "cat")

    def images(self, split: Split, start: int, count: int) -> Float[Tensor, "images channels height width"]:
        """Return patterns with noise."""
        draw = named_generator("conformance", "images", split)
        noise = torch.randn(self.count, 2 * _WIDTH, generator=draw, device="cpu")
        flat = 2 * self._patterns()[self.labels(split)] + 0.3 * noise
        return flat[start : start + count].view(-1, 2, 4, 4)

    def read_images(self, images: Tensor, site: str) -> Float[Tensor, "images tokens d_in"]:
        """Return the tokens of images."""
        return images.reshape(-1, 2, _WIDTH).clone()

    def zero_shot_logits(self, images: Tensor, site: str, patch: Patch | None) -> Float[Tensor, "images classes"]:
        """Return the products with the patterns, tokens patched."""
        tokens = self.read_images(images, site)
        if patch is not None:
            tokens = patch(tokens.flatten(0, 1)).view_as(tokens)
        return 2 * tokens.flatten(1) @ self._patterns().T

    def _values(self, split: Split) -> Float[Tensor, "rows d_in"]:
        return self.read_images(self.images(split, 0, self.count), self.site).flatten(0, 1)


WORLDS: Final[Mapping[str, Callable[[], Backbone]]] = {
    "known features": PlantedBackbone,
    "known features with parents": PlantedTree,
    "a language model": TinyLanguageModel,
    "a vision model": TinyVisionModel,
    "rows alone": BareBackbone,
}
"""What metrics are tried on."""
