"""Contract of a backbone: what activations come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor

from saebench_core.interfaces.context import Context, Split
from saebench_core.interfaces.entry import EntryConfig, Json
from saebench_core.kernels import Codes

__all__ = [
    "ActivationBatch",
    "Backbone",
    "BackboneConfig",
    "BackboneDescription",
    "BackboneSpec",
    "EditableModel",
    "FeatureTree",
    "GroundTruth",
    "LanguageModel",
    "Patch",
    "Precomputed",
    "ReadableModel",
    "TokenBatch",
    "VisionModel",
]


class BackboneConfig(EntryConfig):
    """Base of a backbone's configuration."""

    bookkeeping: ClassVar[frozenset[str]] = frozenset({"name", "sites", "l0", "training"})

    sites: tuple[str, ...] | None = Field(
        None, min_length=1, description="Places that are read; by default the only one there is."
    )
    l0: tuple[PositiveFloat, ...] | None = Field(
        None, min_length=1, description="Target L0s that replace the registry's here."
    )
    training: Any = Field(None, description="Training settings that replace the registry's here.")
    seed: int = Field(0, description="Seed of the backbone itself: features, corpus cut, splits.")


@dataclass(frozen=True)
class BackboneDescription:
    """What a backbone is, known without loading weights.

    Attributes:
        modality: kind of input.
        sites: every site with its width ``d_in``.
        regenerates: rows can be drawn again at will for next to nothing, so they are never stored.
        memory_bytes: memory that the loaded backbone needs.
        disk_bytes: what `Backbone.prepare` stores beside activations: conversions, corpora, a model trained here.
        seconds_per_row: estimate for one row of activations on this machine.
        flops_per_row: operations of one row, so that a plan can be made for another machine.
        whole_pass: what a pass through all of the model and its output costs, in rows.
        facts: further sizes for plan and report.
    """

    modality: Literal["synthetic", "language", "vision", "other"]
    sites: Mapping[str, int]
    regenerates: bool = False
    memory_bytes: int = 0
    disk_bytes: int = 0
    seconds_per_row: float = 1e-6
    flops_per_row: float | None = None
    whole_pass: float = 1.0
    facts: Mapping[str, Json] = field(default_factory=dict)


class ActivationBatch(NamedTuple):
    """Rows at a site.

    Attributes:
        inputs: what an SAE encodes, ``(rows, d_in)``, fp32.
        targets: what it reconstructs; the same tensor for an SAE.
    """

    inputs: Float[Tensor, "rows d_in"]
    targets: Float[Tensor, "rows d_out"]


class Backbone(ABC):
    """Gives activations at its sites.

    A backbone is built from its configuration alone and must be cheap to build: `describe` and `fingerprint`
    work on it at once, everything else after `prepare`.
    """

    @abstractmethod
    def describe(self) -> BackboneDescription:
        """Return sites and sizes from configuration only: no weights, no network unless the name is a hub's.

        Raises:
            InputError: if a file is missing or the configuration cannot be right.
        """

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the contents that the backbone reads beside its configuration, such as files."""
        return {}

    @abstractmethod
    def prepare(self, context: Context) -> None:
        """Load what `stream` and the capabilities need; called once before them.

        Conversions, and models that are trained here, go through ``context.product``.
        """

    @abstractmethod
    def rows_available(self, site: str, split: Split) -> int | None:
        """Return how many rows a split has, or None if it never ends."""

    @abstractmethod
    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield rows ``start`` to ``start + rows`` of a split, in its fixed order, in batches of any size.

        A backbone whose rows are stored may leave out rows by a rule that looks at the row alone; fewer come then,
        and `rows_available` counts them all the same. A thread of its own may stream while SAEs train, but nothing
        else is asked of the backbone meanwhile. The rows are the same in the same order however they are
        cut: exactly for tokens, to 1e-5 relative in fp32 for values, bit-equal for a backbone that ``regenerates``.
        """


@runtime_checkable
class Precomputed(Protocol):
    """Capability: the activations lie in files, so that any row can be read at any time."""

    def folder(self, site: str, split: Split) -> Path:
        """Return the local folder with manifest and shards, checked against its hashes."""


class Patch(Protocol):
    """Replaces activations at a site during a forward pass."""

    def __call__(self, activations: Float[Tensor, "rows d_in"], /) -> Float[Tensor, "rows d_in"]:
        """Return what takes the place of these rows."""


@runtime_checkable
class GroundTruth(Protocol):
    """Capability: the true features are known."""

    def features(self) -> Float[Tensor, "n_features d_in"]:
        """Return the unit-norm feature directions."""

    def probabilities(self) -> Float[Tensor, " n_features"]:
        """Return each feature's probability to fire in a row."""

    def codes(self, split: Split, start: int, rows: int) -> Codes:
        """Return the true coefficients of these rows."""


@runtime_checkable
class FeatureTree(Protocol):
    """Capability: some true features fire only where another one does; beside `GroundTruth`."""

    def parents(self) -> Int[Tensor, " n_features"]:
        """Return each feature's parent, -1 for those that have none; known before `Backbone.prepare`."""


class TokenBatch(NamedTuple):
    """Token sequences, padded on the right.

    Attributes:
        ids: token ids ``(sequences, length)``.
        attention: true where there is a token, ``(sequences, length)``.
        kept: true where the activation is used: not padding, not BOS, not another special token.
    """

    ids: Int[Tensor, "sequences length"]
    attention: Bool[Tensor, "sequences length"]
    kept: Bool[Tensor, "sequences length"]


@runtime_checkable
class LanguageModel(Protocol):
    """Capability: a causal language model that can be read and patched."""

    def tokenise(self, texts: Sequence[str], max_tokens: int, keep: Literal["start", "end"] = "start") -> TokenBatch:
        """Return the texts' tokens, special ones as in `stream`; of long texts the start, or BOS and the end."""

    def sequences(self, split: Split, start: int, count: int) -> TokenBatch:
        """Return the split's sequences of tokens; fewer than ``count`` if it ends."""

    def read(self, tokens: TokenBatch, site: str) -> Float[Tensor, "kept d_in"]:
        """Return the activations of the kept tokens, sequence by sequence, fp32."""

    def logits(
        self, tokens: TokenBatch, site: str, patch: Patch | None
    ) -> Float[Tensor, "sequences length vocabulary"]:
        """Return fp32 logits, the kept tokens' activations at the site replaced by ``patch`` if there is one."""


@runtime_checkable
class ReadableModel(LanguageModel, Protocol):
    """Capability: a language model whose tokens can be read by people."""

    def words(self, ids: Int[Tensor, "sequences count"]) -> list[str]:
        """Return the text of tokens, special ones left out."""

    def pieces(self, ids: Int[Tensor, " count"]) -> list[str]:
        """Return the text of each token of a sequence, with its blanks; joined they are the sequence's text."""


@runtime_checkable
class EditableModel(ReadableModel, Protocol):
    """Capability: a language model that goes on from edited activations, with gradients, and answers in words."""

    def locate(self, texts: Sequence[str], characters: Sequence[int]) -> Int[Tensor, " texts"]:
        """Return the place, among each text's tokens from `tokenise`, of the last token that holds this character."""

    def states(self, tokens: TokenBatch, site: str) -> Float[Tensor, "sequences length d_in"]:
        """Return the activations at the site of every position, in the number format that the model runs in."""

    def resume(
        self,
        tokens: TokenBatch,
        site: str,
        states: Float[Tensor, "sequences length d_in"],
        own: Int[Tensor, " sequences"] | None = None,
    ) -> Float[Tensor, "sequences vocabulary"]:
        """Return fp32 logits after each sequence's last token, computed from the site on; gradients flow to states.

        The first ``own`` states of each sequence are the model's own, of a beginning that many sequences share: what
        is computed of it may be kept. Logits are the same without.
        """

    def logits_from(
        self, tokens: TokenBatch, site: str, states: Float[Tensor, "sequences length d_in"]
    ) -> Float[Tensor, "sequences length vocabulary"]:
        """Return fp32 logits at every position, computed from the site on."""

    def generate(
        self,
        tokens: TokenBatch,
        count: int,
        site: str,
        states: Float[Tensor, "sequences length d_in"] | None,
        own: Int[Tensor, " sequences"] | None = None,
    ) -> Int[Tensor, "sequences count"]:
        """Return the likeliest next tokens, one after the other, with ``states`` at the site if they are given.

        ``own`` is as in `resume`.
        """


@runtime_checkable
class VisionModel(Protocol):
    """Capability: an image model with zero-shot classes that can be read and patched."""

    def image_count(self, split: Split) -> int:
        """Return the number of images of a split."""

    def images(self, split: Split, start: int, count: int) -> Float[Tensor, "images channels height width"]:
        """Return preprocessed images."""

    def labels(self, split: Split) -> Int[Tensor, " images"]:
        """Return every image's class."""

    def class_names(self) -> Sequence[str]:
        """Return the names of the classes."""

    def read_images(self, images: Tensor, site: str) -> Float[Tensor, "images tokens d_in"]:
        """Return the activations of the tokens in use (class token, patches, or all), fp32."""

    def zero_shot_logits(self, images: Tensor, site: str, patch: Patch | None) -> Float[Tensor, "images classes"]:
        """Return scaled cosine similarities to the class texts, activations replaced by ``patch`` if there is one."""


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone as a plugin offers it.

    Attributes:
        config: its configuration model; the name is its ``type``.
        build: makes the backbone from a configuration, loading nothing.
        summary: one line for lists.
        source: where it comes from.
        depends: distributions whose versions shape its numbers, beside the plugin's own and torch.
    """

    config: type[BackboneConfig]
    build: Callable[[Any], Backbone]
    summary: str
    source: str = ""
    depends: tuple[str, ...] = ()
