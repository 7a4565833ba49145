"""Contract of a metric: inputs once for a backbone, then a score for each SAE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saebench_core.errors import PluginError
from saebench_core.interfaces.backbone import Backbone, BackboneDescription
from saebench_core.interfaces.chart import Chart, Observed
from saebench_core.interfaces.context import MetricContext, Split
from saebench_core.interfaces.entry import EntryConfig, Json
from saebench_core.interfaces.excerpt import Gallery
from saebench_core.sae import SparseAutoencoder

__all__ = [
    "Metric",
    "MetricConfig",
    "MetricSpec",
    "NotApplicable",
    "Prepared",
    "Reads",
    "Score",
    "ScoreInfo",
    "Scored",
    "Subject",
    "Work",
]

Reads = Literal["encoder", "decoder", "both"]
Direction = Literal["higher", "lower", "none"]


class MetricConfig(EntryConfig):
    """Base of a metric's configuration."""

    only: tuple[str, ...] | None = Field(None, description="Backbones (names or types) that this entry is for.")


@dataclass(frozen=True)
class ScoreInfo:
    """What one score of a metric means.

    Attributes:
        direction: which way is better; ``none`` for a description.
        unit: unit of the value, ``share``, ``nats``, ``1``.
        low: smallest possible value, or None.
        high: largest possible value, or None.
        reads: parts of the SAE that the score depends on.
        formula: how it is computed, one line.
        source: paper section or equation.
        headline: whether tables show it by default.
    """

    direction: Direction
    unit: str
    low: float | None
    high: float | None
    reads: Reads
    formula: str
    source: str
    headline: bool = False


@dataclass(frozen=True)
class NotApplicable:
    """A result in its own right: the metric says nothing here, and why."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """Inputs of a metric for one backbone and site; stored, and the same for all cells.

    Attributes:
        tensors: what `Metric.score` reads.
        facts: further inputs as JSON.
        floors: score of a no-op or of chance, by score name.
        ceilings: score of the best reference, by score name.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Json] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A finite number and the count of items behind it."""

    value: float
    n: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise PluginError(f"a score must be finite, got {self.value}; return NotApplicable with the reason instead")


@dataclass(frozen=True)
class Scored:
    """What a metric found.

    Attributes:
        scores: by score name; every name that `Metric.scores` declares.
        items: per-item columns of equal length (a latent, class, entity or image a row).
    """

    scores: Mapping[str, Score | NotApplicable]
    items: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """The SAE under examination.

    Attributes:
        sae: in raw backbone space, in inference form, on the context's device.
        start_decoder: returns its decoder as it was drawn, before any training, ``(d_sae, d_in)``.
        others: return the same cell under each other seed, by seed; empty unless `Metric.compares_seeds`.
    """

    sae: SparseAutoencoder
    start_decoder: Callable[[], Float[Tensor, "d_sae d_in"]]
    others: Mapping[int, Callable[[], Subject]] = field(default_factory=dict)


class Work(NamedTuple):
    """Rows (tokens, patches) that a metric has computed, about; a backward pass counts as two.

    A row costs what the backbone takes to its deepest site; a pass through all of it costs `whole_pass` rows.

    Attributes:
        prepared: by the backbone, once for a backbone and site.
        scored: by the backbone, for each SAE.
        encoded: by each SAE.
        asked: questions to a server for each SAE, no rows.
    """

    prepared: int = 0
    scored: int = 0
    encoded: int = 0
    asked: int = 0


class Metric(ABC):
    """Scores SAEs. Formula, range and direction are part of the metric, not of its documentation only."""

    version: ClassVar[int] = 1
    """Raised when the same inputs would give another number."""

    compares_seeds: ClassVar[bool] = False
    """Whether `score` reads `Subject.others`; then it waits until the other seeds are trained."""

    large_inputs: ClassVar[bool] = False
    """Whether `Prepared.tensors` stay on the CPU for `score`, which then moves what it needs; else on the device."""

    @abstractmethod
    def scores(self) -> Mapping[str, ScoreInfo]:
        """Name every score and what it means; depends on the configuration only."""

    @abstractmethod
    def applicable(self, backbone: Backbone) -> NotApplicable | None:
        """Say why the metric does not apply to a backbone (not prepared yet), or None if it does."""

    @abstractmethod
    def prepare(self, context: MetricContext) -> Prepared:
        """Compute inputs, floors and ceilings; called once for a backbone and site, for all cells."""

    @abstractmethod
    def score(self, subject: Subject, prepared: Prepared, context: MetricContext) -> Scored:
        """Score one SAE. ``context.backbone`` loads the backbone: touch it only where the score needs it."""

    def rows(self) -> Mapping[Split, int]:
        """Return how many rows of each split `prepare` or `score` ask for with ``context.activations``."""
        return {}

    def work(self, description: BackboneDescription) -> Work:
        """Return about how many rows the backbone computes and an SAE encodes, for the plan."""
        return Work()

    def stored_bytes(self, description: BackboneDescription, site: str) -> int:
        """Return about how much room `Prepared` takes on the disk, for the plan."""
        return 1 << 20

    def figures(self, found: Sequence[Observed]) -> Sequence[Chart]:
        """Return charts of the per-item tables of a sweep's cells, for the report."""
        return ()

    def galleries(self, found: Sequence[Observed]) -> Sequence[Gallery]:
        """Return texts in which latents of a sweep's cells fire, for the report."""
        return ()

    def to_rate(self, found: Sequence[Observed], count: int) -> Sequence[Gallery]:
        """Return so many latents of each SAE, drawn at random whatever their scores, for people to rate blind."""
        return ()

    def fingerprint(self) -> Mapping[str, Json]:
        """Return digests of the contents that the metric reads beside its configuration, such as files."""
        return {}


@dataclass(frozen=True)
class MetricSpec:
    """A metric as a plugin offers it; the fields are those of `BackboneSpec`."""

    config: type[MetricConfig]
    build: Callable[[Any], Metric]
    summary: str
    source: str = ""
    depends: tuple[str, ...] = ()
