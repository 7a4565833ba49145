"""A backbone: the toy model of superposition (Elhage et al. 2022), trained in numpy.

``y = relu(W^T W x + b)`` learns to give back sparse ``x`` through fewer hidden dimensions than there are features. Its
hidden activations ``h = W x`` are read; the columns of W are the true features.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from saebench_core import (
    ActivationBatch,
    Backbone,
    BackboneConfig,
    BackboneDescription,
    BackboneSpec,
    Codes,
    Context,
    InputError,
    Selection,
    Split,
    derive_seed,
    hookimpl,
)

_BLOCK = 1024
"""Rows that are drawn together, so that a row does not depend on how the stream is cut."""
_BATCH = 256
_SITE = "hidden"

Array = npt.NDArray[np.float32]


class ToyModelConfig(BackboneConfig):
    """Configuration of `ToyModel`."""

    type: Literal["toy_model"] = "toy_model"
    n_features: PositiveInt = Field(48, description="Features that the model has to give back.")
    d_hidden: PositiveInt = Field(16, description="Hidden dimensions; its width.")
    p: float = Field(0.05, gt=0, lt=1, description="Probability of a feature to be in a row.")
    steps: PositiveInt = Field(1500, description="Steps of gradient descent that the model is trained with.")
    lr: PositiveFloat = Field(0.03, description="Learning rate of Adam.")


def draw(config: ToyModelConfig, count: int, *role: int | str) -> Array:
    """Return rows of features: zero, or uniform between 0 and 1."""
    generator = np.random.default_rng(derive_seed(config.seed, "toy_model", *role))
    present = generator.random((count, config.n_features)) < config.p
    return (generator.random((count, config.n_features)) * present).astype(np.float32)


def train(config: ToyModelConfig, context: Context, folder: Path) -> None:
    """Train ``W (n_features, d_hidden)`` with Adam on the squared error, and write it into the folder."""
    generator = np.random.default_rng(derive_seed(config.seed, "toy_model", "weights"))
    weight = generator.standard_normal((config.n_features, config.d_hidden)).astype(np.float32)
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    bias = np.zeros(config.n_features, dtype=np.float32)
    moments = [np.zeros_like(part) for part in (weight, weight, bias, bias)]
    for step in range(1, config.steps + 1):
        x = draw(config, _BATCH, "training", step)
        before = x @ weight @ weight.T + bias
        slope = 2 * (np.maximum(before, 0) - x) * (before > 0) / _BATCH
        to_weight = slope.T @ (x @ weight) + x.T @ (slope @ weight)
        for part, gradient, first, second in (
            (weight, to_weight, moments[0], moments[1]),
            (bias, slope.sum(0), moments[2], moments[3]),
        ):
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            scaled = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            part -= config.lr * (1 - step / config.steps) * first / (1 - 0.9**step) / scaled
        context.progress("train the toy model", step, config.steps)
    np.save(folder / "weight.npy", weight, allow_pickle=False)


class ToyModel(Backbone):
    """Offers `GroundTruth`: features, how often they fire, and their coefficients."""

    def __init__(self, config: ToyModelConfig) -> None:
        self.config = config
        self._weight: Array | None = None
        self._device = torch.device("cpu")

    def describe(self) -> BackboneDescription:
        """Return the one site and the sizes.

        Raises:
            InputError: if there is no superposition.
        """
        config = self.config
        if config.d_hidden >= config.n_features:
            raise InputError(f"d_hidden {config.d_hidden} must be below n_features {config.n_features}")
        return BackboneDescription(
            modality="synthetic",
            sites={_SITE: config.d_hidden},
            regenerates=True,
            memory_bytes=16 * _BLOCK * config.n_features,
            disk_bytes=4 * config.n_features * config.d_hidden + 4096,
            seconds_per_row=2e-8 * config.n_features,
            facts={"n_features": config.n_features, "expected_l0": config.p * config.n_features},
        )

    def prepare(self, context: Context) -> None:
        """Train the model, or take the one that was trained with these settings before."""
        config = self.config
        trained = config.model_dump(mode="json", include={"n_features", "d_hidden", "p", "steps", "lr", "seed"})
        folder = context.product({"toy_model": 1, **trained}, partial(train, config, context))
        self._weight = np.load(folder / "weight.npy", allow_pickle=False)
        self._device = context.device

    @property
    def weight(self) -> Array:
        """The trained weights.

        Raises:
            RuntimeError: before `prepare`.
        """
        if self._weight is None:
            raise RuntimeError("the toy model is not prepared")
        return self._weight

    def rows_available(self, site: str, split: Split) -> int | None:
        """Rows never end."""
        return None

    def _blocks(self, split: Split, start: int, rows: int) -> Iterator[tuple[Array, slice]]:
        """Yield whole blocks of features with the part of each that is asked for."""
        for index in range(start // _BLOCK, -(-(start + rows) // _BLOCK)):
            first = index * _BLOCK
            part = slice(max(start - first, 0), min(start + rows - first, _BLOCK))
            yield draw(self.config, _BLOCK, split, index), part

    def stream(self, site: str, split: Split, start: int, rows: int) -> Iterator[ActivationBatch]:
        """Yield hidden activations; each block is computed whole, so that no cut changes a bit."""
        for features, part in self._blocks(split, start, rows):
            x = torch.from_numpy((features @ self.weight)[part]).to(self._device)
            yield ActivationBatch(x, x)

    def features(self) -> Float[Tensor, "n_features d_in"]:
        """Return the directions that the model gave its features."""
        return torch.nn.functional.normalize(torch.from_numpy(self.weight), dim=1).to(self._device)

    def probabilities(self) -> Float[Tensor, " n_features"]:
        """Return each feature's probability to be in a row."""
        return torch.full((self.config.n_features,), self.config.p, device=self._device)

    def codes(self, split: Split, start: int, rows: int) -> Codes:
        """Return the true coefficients: a feature's value times the length of its column."""
        norms = np.linalg.norm(self.weight, axis=1)
        parts = [features[part] * norms for features, part in self._blocks(split, start, rows)]
        dense = torch.from_numpy(np.concatenate(parts)).to(self._device)
        at, cols = dense.nonzero(as_tuple=True)
        return Codes(Selection(at, cols, rows, self.config.n_features), dense[at, cols])


@hookimpl
def register_backbones() -> list[BackboneSpec]:
    """Offer ``toy_model``."""
    return [
        BackboneSpec(
            config=ToyModelConfig,
            build=ToyModel,
            summary="The toy model of superposition, trained in numpy; its features are known",
            source="Elhage et al. 2022, Toy Models of Superposition",
            depends=("numpy",),
        )
    ]
