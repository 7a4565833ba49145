"""How strongly the features of a synthetic world fire."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Generator, Tensor

from saebench_core import Model


class Strength(NamedTuple):
    """Each feature's own numbers.

    Attributes:
        mean: of the normal.
        std: of the normal.
    """

    mean: Float[Tensor, " n_features"]
    std: Float[Tensor, " n_features"]


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

    def strength(self, count: int, generator: Generator) -> Strength:
        """Return every feature's mean and standard deviation."""
        mean = torch.linspace(self.first_mean, self.last_mean, count, device="cpu")
        spread = torch.randn(count, generator=generator, device="cpu")
        return Strength(mean, (self.std_mean + self.std_spread * spread).abs())
