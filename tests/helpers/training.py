"""Small SAEs, rows in memory and trainees made from the catalog, for tests of the numeric core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch

from saebench_core.activations import ShuffledRows
from saebench_core.catalog import Catalog, make_catalog
from saebench_core.interfaces.architecture import Shape
from saebench_core.interfaces.backbone import ActivationBatch, Backbone, BackboneDescription
from saebench_core.interfaces.constraint import BaseDraw, Init, Statistics, Truth
from saebench_core.kernels import PreActivations
from saebench_core.randomness import named_generator
from saebench_core.rules import Rule
from saebench_core.sae import SparseAutoencoder
from saebench_core.training.settings import TrainingSettings
from saebench_core.training.trainee import Trainee

D_IN, D_SAE, BATCH, L0 = 12, 24, 64, 4.0
WIDE = 768
"""Latents of which four a row are few enough for sparse products; of `D_SAE` they are not."""
CONSTRAINT_INITS = get_args(Init)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def given_pre(pre: torch.Tensor, **how: Any) -> PreActivations:
    """Pre-activations that are exactly this matrix."""
    size = pre.shape[1]
    return PreActivations(pre, torch.eye(size), torch.zeros(size), **how)


@cache
def catalog() -> Catalog:
    return make_catalog()


def trainable_names(kind: str) -> list[str]:
    """Names of the installed plugins of a kind that need no key of their own (a checkpoint to load, say)."""
    return [
        plugin.name
        for plugin in catalog().of_kind(kind)
        if not any(field.is_required() for field in plugin.spec.config.model_fields.values())
    ]


def build(kind: str, name: str, **config: Any) -> Any:
    spec = catalog().get(kind, name).spec
    return spec.build(spec.config.model_validate(config))


@dataclass
class MemoryReader:
    """Rows in memory, in order or by number."""

    values: torch.Tensor
    window: int | None = None

    @property
    def rows(self) -> int:
        return int(self.values.shape[0])

    @property
    def d_in(self) -> int:
        return int(self.values.shape[1])

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        yield from self.values.split(batch_size)

    def take(self, first: int, order: torch.Tensor) -> torch.Tensor:
        return self.values[order + first]

    def span(self, first: int, count: int) -> Iterator[torch.Tensor]:
        yield from self.values[first : first + count].split(7)


class MemoryBackbone(Backbone):
    """A backbone over rows in memory that hands them out in parts of any size."""

    def __init__(self, values: torch.Tensor, part: int = 7, regenerates: bool = False) -> None:
        self.values, self.part, self.regenerates = values, part, regenerates

    def describe(self) -> BackboneDescription:
        return BackboneDescription("other", {"values": int(self.values.shape[1])}, self.regenerates)

    def prepare(self, context: Any) -> None:
        return None

    def rows_available(self, site: str, split: Any) -> int | None:
        return int(self.values.shape[0])

    def stream(self, site: str, split: Any, start: int, rows: int) -> Iterator[ActivationBatch]:
        for part in self.values[start : start + rows].split(self.part):
            yield ActivationBatch(part, part)


def random_sae(rule: Rule, centring: Any = "b_dec", d_in: int = D_IN, d_sae: int = D_SAE) -> SparseAutoencoder:
    """An SAE whose tensors all differ from their starting values."""
    w_dec = torch.nn.functional.normalize(normal(d_sae, d_in, seed=1), dim=1)
    w_enc = w_dec.T + 0.1 * normal(d_in, d_sae, seed=2)
    sae = SparseAutoencoder.start(w_enc, w_dec, 0.3 * normal(d_in, seed=3), rule, centring)
    sae.encoder_bias.copy_(0.1 * normal(d_sae, seed=4))
    if "centre" in sae.tensors:
        sae.tensors["centre"].copy_(0.3 * normal(d_in, seed=5))
    if "threshold" in sae.tensors:
        shape = sae.tensors["threshold"].shape
        sae.tensors["threshold"].copy_(0.2 + torch.rand(shape, generator=generator(6)))
    return sae


def activations(rows: int = 640, d_in: int = D_IN, seed: int = 0) -> torch.Tensor:
    """Correlated rows about a mean, of mean-square norm near one."""
    mixing = torch.linspace(0.3, 1.5, d_in) * normal(d_in, d_in, seed=11)
    x = normal(rows, d_in, seed=seed + 100) @ mixing + normal(d_in, seed=12)
    return x / x.square().sum(1).mean().sqrt()


def statistics_of(x: torch.Tensor) -> Statistics:
    wide = x.double()
    covariance = torch.cov(wide.T, correction=0)
    square = float(wide.square().sum(1).mean())
    return Statistics(x.shape[0], wide.mean(0), square, covariance, truth_of(x.shape[1]))


def truth_of(d_in: int, count: int = 30) -> Truth:
    """Features that are in no rows; the later, the more frequent."""
    directions = torch.nn.functional.normalize(normal(count, d_in, seed=21), dim=1)
    return Truth(directions, torch.linspace(0.01, 0.2, count))


def settings(steps: int = 10, **changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"steps": steps, "batch_size": BATCH, "lr": 5e-3} | changes)


def base_draw(seed: int = 0, d_sae: int = D_SAE, d_in: int = D_IN) -> BaseDraw:
    return BaseDraw.from_generator(named_generator(seed, "weights"), d_sae, d_in)


def make_trainee(
    architecture: str,
    constraint: str,
    x: torch.Tensor | None = None,
    seed: int = 0,
    training: TrainingSettings | None = None,
    on_architecture: dict[str, Any] | None = None,
    l0: float = L0,
    d_sae: int = D_SAE,
    **on_constraint: Any,
) -> Trainee:
    """Return a trainee as the train task makes it; a wide one takes the sparse ways from its first step on."""
    x = activations() if x is None else x
    shape = Shape(x.shape[1], d_sae, l0)
    held = build("constraint", constraint, **on_constraint)
    recipe = held.adapt(
        build("architecture", architecture, d_sae=d_sae, **(on_architecture or {})).recipe(shape), shape
    )
    start = held.initialise(base_draw(seed, d_sae, x.shape[1]), held.config.init, statistics_of(x))
    trainee = Trainee(recipe, held, start, x.mean(0), training or settings(), shape)
    trainee._dense.now = d_sae < WIDE
    return trainee


def stream(x: torch.Tensor, training: TrainingSettings, seed: int = 0) -> ShuffledRows:
    return ShuffledRows(MemoryReader(x), x.shape[0], training.total_rows, training.batch_size, seed)


def quiet(label: str, done: int, total: int) -> None:
    return None


def bits(trainee: Trainee) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainee.sae.tensors.items()}


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
