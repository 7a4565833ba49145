"""Features that fire together: a Gaussian copula, so that each still fires as often as its probability says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from saebench_core import Model
from saebench_plugins.backbones._firing import Entries, Fired, Law, Mask

_CHUNK = 256
_AT_ONCE = 1 << 22
"""Loadings that are gathered at a time."""
_LEAST_OWN = 0.01


@final
@dataclass(frozen=True)
class Dependence(Law):
    """``g = factor z + own e`` with standard normal z and e; a feature fires where ``g`` is above its threshold.

    Attributes:
        thresholds: that a standard normal exceeds as often as each feature fires.
        factor: what features share; with `own` every feature's variance is 1.
        own: standard deviation of what is a feature's alone.
    """

    thresholds: Float[Tensor, " n_features"]
    factor: Float[Tensor, "n_features rank"]
    own: Float[Tensor, " n_features"]

    def of(self, features: Int[Tensor, " some"]) -> Dependence:
        """Return the dependence of some of the features."""
        return Dependence(self.thresholds[features], self.factor[features], self.own[features])

    def given(self, causes: Float[Tensor, "rows causes"]) -> Float[Tensor, "n_features rows"]:
        """Return how often what is a feature's alone exceeds what the causes leave of its threshold."""
        left = self.thresholds[:, None] - self.factor @ causes.T
        exceeded: Tensor = torch.special.ndtr(-(left / self.own[:, None]).double())
        return exceeded

    def everywhere(self, rows: int, generator: Generator) -> tuple[Fired, Float[Tensor, "rows causes"]]:
        """Draw rows; marginally each feature is a Bernoulli of its probability."""
        count, rank = self.factor.shape
        bounds, cols, causes = [np.zeros(1, dtype=np.int64)], [], []
        for start in range(0, rows, _CHUNK):
            part = min(_CHUNK, rows - start)
            causes.append(torch.randn(part, rank, generator=generator, device="cpu"))
            alone = torch.randn(part, count, generator=generator, device="cpu")
            above = torch.addcmul(causes[-1] @ self.factor.T, alone, self.own) > self.thresholds
            places, ends = np.flatnonzero(above.numpy()), count * np.arange(1, part + 1)
            bounds.append(np.searchsorted(places, ends) + bounds[-1][-1])
            cols.append(places % count)
        fired = Fired(torch.from_numpy(np.concatenate(bounds)), torch.from_numpy(np.concatenate(cols)))
        return fired, torch.cat(causes)

    def at(self, causes: Float[Tensor, "rows causes"], entries: Entries, generator: Generator) -> Mask:
        """Draw what is each feature's own."""
        cols = entries.cols
        alone = torch.randn(cols.shape, generator=generator, device="cpu")
        parts = zip(*(torch.split(one, max(1, _AT_ONCE // causes.shape[1])) for one in entries), strict=True)
        shared = torch.cat([torch.linalg.vecdot(causes[row], self.factor[col]) for row, col in parts])
        return torch.addcmul(shared, alone, self.own[cols]) > self.thresholds[cols]

    def correlation(self) -> Float[Tensor, "n_features n_features"]:
        """Return the correlation of the underlying normals."""
        return self.factor @ self.factor.T + torch.diag(self.own.square())


def _thresholds(probabilities: Float[Tensor, " n_features"]) -> Float[Tensor, " n_features"]:
    exceeded: Tensor = -torch.special.ndtri(probabilities).float()
    return exceeded


class LowRankCorrelation(Model):
    """Correlation by a few shared causes: loadings are normal with standard deviation ``scale`` (SynthSAEBench)."""

    type: Literal["low_rank"] = "low_rank"
    rank: PositiveInt = Field(25, description="Number of shared causes.")
    scale: PositiveFloat = Field(0.1, description="Standard deviation of a loading.")

    def causes(self, count: int) -> int:
        """Return how many numbers the features share in a row."""
        return self.rank

    def draw(self, probabilities: Float[Tensor, " n_features"], generator: Generator) -> Dependence:
        """Draw loadings; of a feature's variance at least a hundredth stays its own."""
        count = probabilities.numel()
        factor = self.scale * torch.randn(count, self.rank, generator=generator, device="cpu")
        norms = factor.norm(dim=1, keepdim=True)
        factor = factor * (1 - _LEAST_OWN) ** 0.5 / norms.clamp(min=(1 - _LEAST_OWN) ** 0.5)
        return Dependence(_thresholds(probabilities), factor, (1 - factor.square().sum(dim=1)).sqrt())


class FullCorrelation(Model):
    """Correlation of every pair: that of random vectors, one a feature, times ``scale``."""

    type: Literal["full"] = "full"
    scale: float = Field(0.5, gt=0, le=1, description="1: as drawn; towards 0: independent.")
    degrees: PositiveInt | None = Field(
        None,
        description="Length of the random vectors; a usual correlation is `scale` over its root. Null: as many as "
        "there are features, a matrix of full rank, which is weak and dear where there are many.",
    )

    def causes(self, count: int) -> int:
        """Return how many numbers the features share in a row."""
        return self.degrees or count

    def draw(self, probabilities: Float[Tensor, " n_features"], generator: Generator) -> Dependence:
        """Draw ``scale C + (1 - scale) I`` with C the cosines of random vectors."""
        count = probabilities.numel()
        vectors = torch.randn(count, self.causes(count), generator=generator, dtype=torch.float64, device="cpu")
        unit = torch.nn.functional.normalize(vectors, dim=1)
        own = torch.full((count,), (1 - self.scale) ** 0.5, device="cpu")
        return Dependence(_thresholds(probabilities), (self.scale**0.5 * unit).float(), own)


Correlation = Annotated[LowRankCorrelation | FullCorrelation, Field(discriminator="type")]
