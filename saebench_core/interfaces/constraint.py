"""Contract of a baseline constraint: what is held random, and how that is proven."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from saebench_core.errors import InputError
from saebench_core.geometry import drawn_order
from saebench_core.interfaces.architecture import Recipe, Shape
from saebench_core.interfaces.context import ActivationReader
from saebench_core.interfaces.entry import EntryConfig, Json
from saebench_core.rules import Role
from saebench_core.sae import SparseAutoencoder

__all__ = [
    "BaseDraw",
    "Constraint",
    "ConstraintConfig",
    "ConstraintSpec",
    "Init",
    "Randomised",
    "Start",
    "Statistics",
    "Truth",
    "draw_directions",
]

Init = Literal["iso", "cov", "kaiming", "truth"]
Randomised = Literal["encoder", "decoder", "pairing", "codes"]


class ConstraintConfig(EntryConfig):
    """Base of a constraint's configuration."""

    init: Init = Field(
        "iso",
        description="Directions at the start: isotropic, by the data's covariance, Kaiming, "
        "or the true features where the backbone knows them.",
    )
    only: tuple[str, ...] | None = Field(None, description="Backbones (names or types) that this entry is for.")


@dataclass(frozen=True)
class BaseDraw:
    """The random numbers that all twins of a seed share.

    Attributes:
        normal: standard-normal G, ``(d_sae, d_in)``.
        uniform: uniform numbers in [-1, 1] from the same generator, ``(d_sae, d_in)``.
    """

    normal: Float[Tensor, "d_sae d_in"]
    uniform: Float[Tensor, "d_sae d_in"]

    @classmethod
    def from_generator(cls, generator: torch.Generator, d_sae: int, d_in: int) -> BaseDraw:
        """Draw G first, so that it does not depend on what an init needs beside it."""
        normal = torch.randn(d_sae, d_in, generator=generator, device="cpu")
        uniform = torch.rand(d_sae, d_in, generator=generator, device="cpu") * 2 - 1
        return cls(normal, uniform)


@final
@dataclass(frozen=True)
class Truth:
    """The features that activations are made of, where the backbone knows them; kept on the CPU.

    Attributes:
        features: unit-norm directions ``(n_features, d_in)``.
        probabilities: how often each fires, ``(n_features,)``.
    """

    features: Float[Tensor, "n_features d_in"]
    probabilities: Float[Tensor, " n_features"]


@dataclass(frozen=True)
class Statistics:
    """What is known of the training activations: statistics accumulated in fp64, kept on the CPU.

    Attributes:
        rows: number of rows they come from.
        mean: ``(d_in,)``.
        mean_square_norm: mean of ``||x||^2``.
        covariance: ``(d_in, d_in)`` about the mean.
        truth: what they are made of, where that is known.
    """

    rows: int
    mean: Float[Tensor, " d_in"]
    mean_square_norm: float
    covariance: Float[Tensor, "d_in d_in"]
    truth: Truth | None = None


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Weights at the start.

    Attributes:
        w_enc: ``(d_in, d_sae)``.
        w_dec: ``(d_sae, d_in)``.
    """

    w_enc: Float[Tensor, "d_in d_sae"]
    w_dec: Float[Tensor, "d_sae d_in"]

    @cached_property
    def order(self) -> Int[Tensor, " d_sae"]:
        """The latents in a random order that the draw decides, for whatever a constraint has to choose among them."""
        return drawn_order(self.w_dec)


def draw_directions(draw: BaseDraw, init: Init, statistics: Statistics) -> Float[Tensor, "d_sae d_in"]:
    """Return unit-norm directions, one a latent (paper section 4.1 and appendix E).

    iso: rows of G, uniform on the sphere. cov: rows of ``G root(Sigma)``, as samples of N(0, Sigma).
    kaiming: uniform in ``+-sqrt(6 / d_in)``, then normalised as SAE libraries do. truth: the true features, the most
    frequent first; where there are more latents than features, rows of G for the others.

    Raises:
        InputError: for truth where the backbone does not know its features.
    """
    if init == "iso":
        rows = draw.normal
    elif init == "truth":
        rows = _true_rows(draw, statistics.truth)
    elif init == "kaiming":
        rows = draw.uniform * (6 / draw.uniform.shape[1]) ** 0.5
    else:
        values, vectors = torch.linalg.eigh(statistics.covariance.to(torch.float64))
        # the symmetric root: any other depends on the signs and the order of eigenvectors, which no library fixes
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        rows = (draw.normal.to(torch.float64) @ root).to(torch.float32)
    return torch.nn.functional.normalize(rows, dim=1)


def _true_rows(draw: BaseDraw, truth: Truth | None) -> Float[Tensor, "d_sae d_in"]:
    if truth is None:
        raise InputError(
            "init truth starts at the true features, and this backbone knows none; take iso, cov or kaiming"
        )
    count = draw.normal.shape[0]
    frequent = truth.probabilities.argsort(descending=True, stable=True)[:count]
    return torch.cat([truth.features[frequent], draw.normal[frequent.numel() :]])


class Constraint(ABC):
    """Says what stays random, and keeps it so."""

    randomises: ClassVar[frozenset[Randomised]] = frozenset()
    """Parts that training never learns; a constraint is a valid null for a metric that reads one of them."""

    reference: ClassVar[bool] = False
    """Whether it knows or does more than an SAE can, such as searching for codes, and is a null for no score."""

    needs: ClassVar[str | None] = None
    """Type of the twin whose checkpoint `finish` starts from, or None."""

    trains: ClassVar[bool] = True
    """Whether there are optimiser steps at all."""

    def initialise(self, draw: BaseDraw, init: Init, statistics: Statistics) -> Start:
        """Return the starting weights: the init's directions as decoder, its transposed copy as encoder."""
        w_dec = draw_directions(draw, init, statistics)
        return Start(w_dec.T.clone(), w_dec)

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Return the recipe to train with: rule or terms dropped or replaced, the centring fixed."""
        return recipe

    @abstractmethod
    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Name the tensors that stay out of the optimiser; they end bit-identical, in what is published too.

        A constraint whose `finish` returns another SAE, such as its twin, freezes nothing.
        """

    def project(self, sae: SparseAutoencoder, start: Start) -> None:  # noqa: B027 - most constraints have no set
        """Bring the SAE back into the allowed set after an optimiser step, in place, without gradients."""

    def finish(self, sae: SparseAutoencoder, twin: SparseAutoencoder | None) -> SparseAutoencoder:
        """Return the SAE after training, before thresholds are calibrated; ``twin`` is what `needs` asks for."""
        return sae

    def calibrate(
        self, sae: SparseAutoencoder, twin: SparseAutoencoder | None, rows: ActivationReader
    ) -> SparseAutoencoder:
        """Return the SAE with what is measured on held-out rows, such as thresholds that match a twin's frequencies.

        A threshold that the rule itself calibrates (`Rule.calibrated`) is set after this.

        Args:
            sae: what `finish` returned, acting on raw activations.
            twin: what `needs` asks for.
            rows: the calibration split.
        """
        return sae

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """Return this constraint's own facts for the certificate, such as ``at_bound_share``."""
        return {}


@dataclass(frozen=True)
class ConstraintSpec:
    """A constraint as a plugin offers it; the fields are those of `BackboneSpec`."""

    config: type[ConstraintConfig]
    build: Callable[[Any], Constraint]
    summary: str
    source: str = ""
    depends: tuple[str, ...] = ()
