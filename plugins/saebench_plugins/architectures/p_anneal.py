"""p-annealed SAE (Karvonen et al. 2024): ReLU with a penalty that goes from L1 towards a count."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    Objective,
    PowerPenalty,
    Recipe,
    Reconstruction,
    ReLU,
    Shape,
    WeightedTerm,
    hookimpl,
)

_GAIN = 4.0
"""The L0 answers slowly to the weight of a penalty that is flat for large values; at 1 it ends 3 % below its target."""


class PAnnealConfig(ArchitectureConfig):
    """Configuration of `PAnneal`."""

    type: Literal["p_anneal"] = "p_anneal"
    coefficient: PositiveFloat = Field(
        0.1, description="Weight of the penalty before the controller multiplies it, for inputs of unit mean square."
    )
    p_end: float = Field(0.2, gt=0.0, le=1.0, description="The last exponent; the first is 1.")
    changes: PositiveInt = Field(10, description="Steps in which the exponent falls.")
    anneal_from: float = Field(0.05, ge=0.0, le=1.0, description="Share of the training at the first change.")
    anneal_to: float = Field(
        0.8, ge=0.0, le=1.0, description="Share at the last change; what is left is the controller's, to meet the L0."
    )
    eps: PositiveFloat = Field(1e-3, description="Added to the values, so that the slope at zero stays finite.")

    @model_validator(mode="after")
    def _ordered(self) -> PAnnealConfig:
        if self.anneal_from > self.anneal_to:
            raise ValueError(f"anneal_from {self.anneal_from:g} must not be above anneal_to {self.anneal_to:g}")
        return self


class PAnneal(Architecture):
    """``z = relu((x - b_dec) W_enc + b_enc)``; loss ``||x - x_hat||^2 + lambda sum (z + eps)^p - eps^p``.

    At every change of p the penalty is multiplied so that its value stays.
    """

    def __init__(self, config: PAnnealConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the penalised loss; a controller moves lambda until the mean L0 is the target."""
        config = self.config
        power = PowerPenalty(config.p_end, config.changes, config.anneal_from, config.anneal_to, config.eps)
        penalty = WeightedTerm(power, config.coefficient, "warmup", controlled=True, l0=shape.l0, gain=_GAIN)
        return Recipe(ReLU(), Objective((WeightedTerm(Reconstruction()), penalty)))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``p_anneal``."""
    return [
        ArchitectureSpec(
            config=PAnnealConfig,
            build=PAnneal,
            summary="ReLU with an Lp penalty, p falling from 1, its weight steered to the target L0",
            source="Karvonen et al. 2024, arXiv 2408.00113",
        )
    ]
