"""JumpReLU SAE (Rajamanoharan et al. 2024): a threshold for each latent, trained by surrogate gradients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    JumpReLU,
    Objective,
    Recipe,
    Reconstruction,
    Shape,
    TargetL0,
    WeightedTerm,
    hookimpl,
)


class JumpReLUConfig(ArchitectureConfig):
    """Configuration of `JumpReLUArchitecture`."""

    type: Literal["jumprelu"] = "jumprelu"
    bandwidth: PositiveFloat = Field(
        0.001, description="Width of the surrogate's kernel, for inputs of unit mean square."
    )
    threshold: PositiveFloat = Field(0.001, description="Threshold of every latent at the start.")
    l0_coefficient: PositiveFloat = Field(1.0, description="Weight of the squared relative miss of the target L0.")


class JumpReLUArchitecture(Architecture):
    """``z = pre [pre > theta]``; loss ``||x - x_hat||^2 + c (mean L0 / target - 1)^2``; no pre-encoder bias."""

    def __init__(self, config: JumpReLUConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the target-L0 loss."""
        target = WeightedTerm(TargetL0(shape.l0), self.config.l0_coefficient, "warmup")
        rule = JumpReLU(self.config.bandwidth, self.config.threshold)
        return Recipe(rule, Objective((WeightedTerm(Reconstruction()), target)), centring="none")


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``jumprelu``."""
    return [
        ArchitectureSpec(
            config=JumpReLUConfig,
            build=JumpReLUArchitecture,
            summary="A trained threshold for each latent, steered to the target L0 by the loss",
            source="Rajamanoharan et al. 2024, arXiv 2407.14435; target-L0 loss as in dictionary_learning",
        )
    ]
