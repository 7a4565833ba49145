"""How strongly the features of a synthetic world fire."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Generator, Tensor

from saebench_core import Model


class Magnitudes(ABC):
    """How strongly features fire where they do."""

    @abstractmethod
    def of(self, cols: Int[Tensor, "*entries"], normal: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
        """Turn standard normal values of these features into magnitudes; what becomes zero does not fire."""

    @abstractmethod
    def means(self, cols: Int[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
        """Return the magnitudes of these features that children are scaled by."""

    @abstractmethod
    def positive(self) -> Float[Tensor, " n_features"] | float:
        """Return how often each feature's magnitude is above zero."""


@final
@dataclass(frozen=True)
class LogNormal(Magnitudes):
    """``exp(sigma z)``.

    Attributes:
        sigma: the same for all features.
    """

    sigma: float

    def of(self, cols: Int[Tensor, "*entries"], normal: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
        """Turn normal values into log-normal ones."""
        return torch.exp(self.sigma * normal)

    def means(self, cols: Int[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
        """Return ``exp(sigma^2 / 2)``."""
        return torch.full(cols.shape, math.exp(self.sigma**2 / 2), device="cpu")

    def positive(self) -> Float[Tensor, " n_features"] | float:
        """Return 1: always."""
        return 1.0


@final
@dataclass(frozen=True)
class CutNormals(Magnitudes):
    """Normals cut at zero, each feature with its own numbers.

    Attributes:
        mean: of the normal.
        std: of the normal.
    """

    mean: Float[Tensor, " n_features"]
    std: Float[Tensor, " n_features"]

    def of(self, cols: Int[Tensor, "*entries"], normal: Float[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
        """Shift, stretch and cut."""
        return torch.relu(torch.take(self.mean, cols) + torch.take(self.std, cols) * normal)

    def means(self, cols: Int[Tensor, "*entries"]) -> Float[Tensor, "*entries"]:
        """Return the means of the normals, before they are cut."""
        return torch.take(self.mean, cols)

    def positive(self) -> Float[Tensor, " n_features"] | float:
        """Return the normals' probability of being above zero."""
        share: Tensor = torch.special.ndtr(self.mean.double() / self.std.double())
        return share


class RectifiedNormal(Model):
    """``relu(mean_i + std_i z)`` with z standard normal, drawn anew for every row and feature (SynthSAEBench).

    Means fall in equal steps over the features; ``std_i = |std_mean + std_spread z_i|`` is drawn once per feature. What
    is rectified to zero does not fire.
    """

    type: Literal["rectified_normal"] = "rectified_normal"
    first_mean: PositiveFloat = Field(5.0, description="Mean of the first feature.")
    last_mean: PositiveFloat = Field(4.0, description="Mean of the last feature.")
    std_mean: NonNegativeFloat = Field(0.5, description="Mean of the features' standard deviations.")
    std_spread: NonNegativeFloat = Field(0.5, description="Standard deviation of the standard deviations.")

    def draw(self, count: int, generator: Generator) -> CutNormals:
        """Return every feature's mean and standard deviation."""
        mean = torch.linspace(self.first_mean, self.last_mean, count, device="cpu")
        spread = torch.randn(count, generator=generator, device="cpu")
        return CutNormals(mean, (self.std_mean + self.std_spread * spread).abs())
