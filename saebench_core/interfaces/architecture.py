"""Contract of an SAE architecture: a selection rule and an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from saebench_core.interfaces.entry import EntryConfig
from saebench_core.objectives import Objective
from saebench_core.rules import Rule
from saebench_core.sae import Centring

__all__ = ["Architecture", "ArchitectureConfig", "ArchitectureSpec", "DecoderNorm", "Recipe", "Shape"]

DecoderNorm = Literal["unit", "free"]


class ArchitectureConfig(EntryConfig):
    """Base of an architecture's configuration. Sparsity is not set here: ``l0`` is its only source."""

    d_sae: PositiveInt | None = Field(None, description="Number of latents; either this or `expansion`.")
    expansion: PositiveFloat | None = Field(None, description="Number of latents as a multiple of d_in.")
    only: tuple[str, ...] | None = Field(None, description="Backbones (names or types) that this entry is for.")

    @model_validator(mode="after")
    def _one_size(self) -> ArchitectureConfig:
        if (self.d_sae is None) == (self.expansion is None):
            raise ValueError("give exactly one of `d_sae` and `expansion`")
        return self

    def width(self, d_in: int) -> int:
        """Return ``d_sae`` for activations of this width."""
        return self.d_sae if self.d_sae is not None else max(1, round((self.expansion or 1.0) * d_in))


@dataclass(frozen=True)
class Shape:
    """Sizes that an architecture may depend on: ``d_in``, ``d_sae`` and the target ``l0``."""

    d_in: int
    d_sae: int
    l0: float


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained: what an architecture proposes and a constraint may change.

    Attributes:
        rule: selection rule.
        objective: loss.
        centring: what is subtracted before encoding.
        decoder_norm: ``unit``: rows are brought back to norm one after every step; ``free``: they are not, and the
            norms are folded into the codes at the end.
        start_norm: norm of the decoder's rows at the start, and of the encoder's vectors, which are their copies.
    """

    rule: Rule
    objective: Objective
    centring: Centring = "b_dec"
    decoder_norm: DecoderNorm = "unit"
    start_norm: float = 1.0


class Architecture(ABC):
    """Combines a selection rule and loss terms; has no training code."""

    @abstractmethod
    def recipe(self, shape: Shape) -> Recipe:
        """Return rule and objective for these sizes.

        Raises:
            InputError: if the architecture cannot have this shape.
        """


@dataclass(frozen=True)
class ArchitectureSpec:
    """An architecture as a plugin offers it; the fields are those of `BackboneSpec`."""

    config: type[ArchitectureConfig]
    build: Callable[[Any], Architecture]
    summary: str
    source: str = ""
    depends: tuple[str, ...] = ()
