"""How often the features of a synthetic world fire."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Generator, Tensor

from saebench_core import Model


class ConstantProbability(Model):
    """Every feature fires equally often."""

    falls: ClassVar[bool] = False

    type: Literal["constant"] = "constant"
    p: float = Field(gt=0, lt=1, description="Probability to fire in a row.")

    def draw(self, count: int, generator: Generator) -> Float[Tensor, " n_features"]:
        """Return the probabilities in fp64."""
        return torch.full((count,), self.p, dtype=torch.float64, device="cpu")

    def expected_sum(self, count: int) -> float:
        """Return the expected sum of all probabilities."""
        return self.p * count


class LogUniformProbability(Model):
    """Probabilities drawn once per feature, uniform in their logarithm."""

    falls: ClassVar[bool] = False

    type: Literal["log_uniform"] = "log_uniform"
    low: float = Field(gt=0, lt=1, description="Smallest probability.")
    high: float = Field(gt=0, lt=1, description="Largest probability.")

    @model_validator(mode="after")
    def _ordered(self) -> LogUniformProbability:
        _check_order(self.low, self.high)
        return self

    def draw(self, count: int, generator: Generator) -> Float[Tensor, " n_features"]:
        """Return the probabilities in fp64."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
        low, high = math.log(self.low), math.log(self.high)
        return torch.exp(low + (high - low) * uniform)

    def expected_sum(self, count: int) -> float:
        """Return the expected sum of all probabilities."""
        if self.low == self.high:
            return self.low * count
        return count * (self.high - self.low) / math.log(self.high / self.low)


class ZipfProbability(Model):
    """A power of the rank, stretched so that the first feature has ``high`` and the last ``low`` (SynthSAEBench)."""

    falls: ClassVar[bool] = True

    type: Literal["zipf"] = "zipf"
    low: float = Field(gt=0, lt=1, description="Probability of the rarest feature.")
    high: float = Field(gt=0, lt=1, description="Probability of the most frequent feature.")
    exponent: NonNegativeFloat = Field(0.5, description="Of the rank, with a minus.")

    @model_validator(mode="after")
    def _ordered(self) -> ZipfProbability:
        _check_order(self.low, self.high)
        return self

    def draw(self, count: int, generator: Generator) -> Float[Tensor, " n_features"]:
        """Return the probabilities in fp64, by rank."""
        power = torch.arange(1, count + 1, dtype=torch.float64, device="cpu") ** -self.exponent
        return _stretched(power, self.low, self.high)

    def expected_sum(self, count: int) -> float:
        """Return the sum of all probabilities."""
        return float(self.draw(count, Generator()).sum())


class LinearProbability(Model):
    """From ``high`` for the first feature to ``low`` for the last, in equal steps."""

    falls: ClassVar[bool] = True

    type: Literal["linear"] = "linear"
    low: float = Field(gt=0, lt=1, description="Probability of the rarest feature.")
    high: float = Field(gt=0, lt=1, description="Probability of the most frequent feature.")

    @model_validator(mode="after")
    def _ordered(self) -> LinearProbability:
        _check_order(self.low, self.high)
        return self

    def draw(self, count: int, generator: Generator) -> Float[Tensor, " n_features"]:
        """Return the probabilities in fp64, by rank."""
        return torch.linspace(self.high, self.low, count, dtype=torch.float64, device="cpu")

    def expected_sum(self, count: int) -> float:
        """Return the sum of all probabilities."""
        return (self.high + self.low) / 2 * count if count > 1 else self.high


Probability = Annotated[
    ConstantProbability | LogUniformProbability | ZipfProbability | LinearProbability, Field(discriminator="type")
]


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")


def _stretched(power: Float[Tensor, " n_features"], low: float, high: float) -> Float[Tensor, " n_features"]:
    span = float(power[0] - power[-1])
    return torch.full_like(power, high) if span == 0 else low + (high - low) * (power - power[-1]) / span
