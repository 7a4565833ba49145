"""Directions of the features of a synthetic world."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from saebench_core import Model


class Orthogonalisation(Model):
    """Steps of Adam that push the directions apart (SynthSAEBench)."""

    steps: PositiveInt = Field(100, description="Steps of Adam.")
    lr: PositiveFloat = Field(3e-4, description="Learning rate.")


def random_directions(count: int, d_in: int, generator: Generator) -> Float[Tensor, "n_features d_in"]:
    """Return directions that are uniform on the sphere."""
    return torch.nn.functional.normalize(torch.randn(count, d_in, generator=generator, device="cpu"), dim=1)


def pushed_apart(
    directions: Float[Tensor, "n_features d_in"], settings: Orthogonalisation
) -> Float[Tensor, "n_features d_in"]:
    """Return unit directions after Adam on ``sum_{i != j} (f_i f_j)^2 + n sum_i (f_i f_i - 1)^2``.

    The gradient of the first sum is ``4 (F F^T F - diag(F F^T) F)``, so ``F^T F`` is enough and no table of all pairs
    is made.
    """
    moved = directions.clone().requires_grad_()
    optimiser = torch.optim.Adam([moved], lr=settings.lr)
    count = directions.shape[0]
    for _ in range(settings.steps):
        with torch.no_grad():
            squares = moved.square().sum(dim=1, keepdim=True)
            apart = moved @ (moved.T @ moved) - squares * moved
            moved.grad = 4 * (apart + count * (squares - 1) * moved)
        optimiser.step()
    return torch.nn.functional.normalize(moved.detach(), dim=1)
