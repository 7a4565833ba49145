"""Trains small SAEs as the core does, for checks of architectures and constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, final

import torch
from torch import Tensor

from saebench_core.catalog import Catalog, Plugin
from saebench_core.conformance.context import MemoryReader
from saebench_core.conformance.worlds import planted_rows, planted_truth
from saebench_core.interfaces.architecture import ArchitectureConfig, ArchitectureSpec, Recipe, Shape
from saebench_core.interfaces.constraint import BaseDraw, Constraint, ConstraintConfig, ConstraintSpec, Statistics
from saebench_core.randomness import named_generator, tensor_sha256
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.ending import ended, published
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.trainee import Trainee

__all__ = [
    "BATCH",
    "D_IN",
    "D_SAE",
    "L0",
    "SCALE",
    "Ended",
    "Made",
    "Pair",
    "calibration",
    "raw_rows",
    "rows",
    "settings",
    "statistics",
]

D_IN, D_SAE, L0, BATCH = 12, 24, 4.0, 64
SCALE: Final = 2.0
"""Raw activations are so much larger than those that are trained on."""


def rows() -> Tensor:
    """Return training rows in training space."""
    return planted_rows(640, D_IN, "train")


def calibration() -> MemoryReader:
    """Return held-out rows in raw space."""
    return MemoryReader(SCALE * planted_rows(640, D_IN, "calibration"))


def raw_rows() -> Tensor:
    """Return raw rows that no threshold was set on: a calibrated one equals a pre-activation of its rows."""
    return SCALE * planted_rows(640, D_IN, "evaluation")


def statistics() -> Statistics:
    """Return statistics of the raw training rows."""
    wide = SCALE * rows().double()
    covariance = torch.cov(wide.T, correction=0)
    return Statistics(len(wide), wide.mean(0), float(wide.square().sum(1).mean()), covariance, planted_truth(D_IN))


def settings(steps: int, **changes: Any) -> TrainingSettings:
    """Return settings of a short training, with a weight decay that would move whatever it reached."""
    short = {"steps": steps, "batch_size": BATCH, "lr": 5e-3, "weight_decay": 0.1, "dead_rows": 4 * BATCH}
    return TrainingSettings.model_validate(short | changes)


@final
class Ended(NamedTuple):
    """An SAE in raw space: as it is certified, and as it is saved, with free decoder norms in the codes."""

    certified: SparseAutoencoder
    published: SparseAutoencoder


@final
class Made(NamedTuple):
    """An SAE in training, and the hash of its draw before the constraint used it."""

    trainee: Trainee
    constraint: Constraint
    draw: BaseDraw
    draw_sha256: str

    def run(self, first: int, last: int, each: Callable[[Trainee], None] | None = None) -> Trainee:
        """Take the steps from number ``first`` to before ``last``; batches depend on the number alone."""
        x = rows()
        for number in range(first, last):
            draw = named_generator("conformance", "batch", number)
            chosen = torch.randint(len(x), (BATCH,), generator=draw, device="cpu")
            self.trainee.step(x[chosen], number)
            if each is not None:
                each(self.trainee)
        return self.trainee

    def end(self, twin: SparseAutoencoder | None) -> Ended:
        """Fold, finish and calibrate by what ends a training in the core."""
        certified, _ = ended(self.trainee, SCALE, twin, calibration())
        return Ended(certified, published(self.trainee, certified))

    def finish(self, twin: SparseAutoencoder | None) -> SparseAutoencoder:
        """Return what would be saved."""
        return self.end(twin).published


@final
@dataclass(frozen=True)
class Pair:
    """An architecture under a constraint.

    Attributes:
        architecture: the plugin.
        constraint: the plugin.
        entry: configuration of the architecture.
        held: configuration of the constraint.
    """

    architecture: Plugin
    constraint: Plugin
    entry: ArchitectureConfig
    held: ConstraintConfig

    @property
    def label(self) -> str:
        """Name of the pair in messages."""
        return f"{self.architecture.name} under {self.constraint.name}"

    def recipe(self, l0: float = L0, d_in: int = D_IN) -> tuple[Recipe, Constraint]:
        """Return the recipe as the constraint adapts it, and the constraint, both built anew."""
        shape = Shape(d_in, self.entry.width(d_in), l0)
        constraint = cast(ConstraintSpec, self.constraint.spec).build(self.held)
        architecture = cast(ArchitectureSpec, self.architecture.spec).build(self.entry)
        return constraint.adapt(architecture.recipe(shape), shape), constraint

    def made(self, training: TrainingSettings, l0: float = L0, seed: int = 0) -> Made:
        """Return an SAE before its first step."""
        recipe, constraint = self.recipe(l0)
        width = self.entry.width(D_IN)
        draw = BaseDraw.from_generator(named_generator("conformance", "weights", seed), width, D_IN)
        before = tensor_sha256(torch.stack([draw.normal, draw.uniform]))
        start = constraint.initialise(draw, self.held.init, statistics())
        b_dec = (statistics().mean / SCALE).to(torch.float32)
        trainee = Trainee(recipe, constraint, start, b_dec, training, Shape(D_IN, width, l0))
        trainee.screen = "fp32"
        return Made(trainee, constraint, draw, before)

    def save(self, sae: SparseAutoencoder, folder: Path, l0: float = L0) -> None:
        """Write an SAE with the metadata that the core writes."""
        identities = {"architecture": self.entry.identity(), "constraint": self.held.identity()}
        sae.save(folder, {**identities, "l0": l0})

    def load(self, folder: Path) -> SparseAutoencoder:
        """Read an SAE as the core does: by its file's architecture, or by what the plugins make of it."""
        return Catalog([self.architecture, self.constraint], []).load_sae(folder)
