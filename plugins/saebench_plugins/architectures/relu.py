"""ReLU SAE with an L1 penalty (Bricken et al. 2023), its weight steered to the target L0."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from saebench_core import (
    L1,
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    Objective,
    Recipe,
    Reconstruction,
    ReLU,
    Shape,
    WeightedTerm,
    hookimpl,
)


class ReLUConfig(ArchitectureConfig):
    """Configuration of `ReLUArchitecture`."""

    type: Literal["relu"] = "relu"
    l1_coefficient: PositiveFloat = Field(
        0.1, description="Weight of the penalty before the controller multiplies it, for inputs of unit mean square."
    )


class ReLUArchitecture(Architecture):
    """``z = relu((x - b_dec) W_enc + b_enc)``; loss ``||x - x_hat||^2 + lambda sum z``; unit-norm decoder."""

    def __init__(self, config: ReLUConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the penalised loss; a controller moves lambda until the mean L0 is the target."""
        penalty = WeightedTerm(L1(), self.config.l1_coefficient, "warmup", controlled=True, l0=shape.l0)
        return Recipe(ReLU(), Objective((WeightedTerm(Reconstruction()), penalty)))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``relu``."""
    return [
        ArchitectureSpec(
            config=ReLUConfig,
            build=ReLUArchitecture,
            summary="ReLU with an L1 penalty, its weight steered to the target L0",
            source="Bricken et al. 2023, Towards Monosemanticity",
        )
    ]
