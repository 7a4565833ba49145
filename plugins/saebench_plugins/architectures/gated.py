"""Gated SAE (Rajamanoharan et al. 2024): which latents fire and how strongly are decided apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from saebench_core import (
    L1,
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    Gated,
    GateReconstruction,
    Objective,
    Recipe,
    Reconstruction,
    Shape,
    WeightedTerm,
    hookimpl,
)


class GatedConfig(ArchitectureConfig):
    """Configuration of `GatedArchitecture`."""

    type: Literal["gated"] = "gated"
    l1_coefficient: PositiveFloat = Field(
        0.1,
        description="Weight of the penalty on the gates before the controller multiplies it, for inputs of unit mean "
        "square.",
    )


class GatedArchitecture(Architecture):
    """``z = [p + b_gate > 0] relu(exp(r_mag) p + b_mag)`` with ``p = (x - b_dec) W_enc``; unit-norm decoder.

    The loss is ``||x - x_hat||^2 + lambda sum relu(p + b_gate) + ||x - (relu(p + b_gate) W_dec + b_dec)||^2``; in the
    last term W_dec and b_dec are constants.
    """

    def __init__(self, config: GatedConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the penalised loss; a controller moves lambda until the mean L0 is the target."""
        penalty = WeightedTerm(L1(of="pre"), self.config.l1_coefficient, "warmup", controlled=True, l0=shape.l0)
        terms = (WeightedTerm(Reconstruction()), penalty, WeightedTerm(GateReconstruction()))
        return Recipe(Gated(), Objective(terms))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``gated``."""
    return [
        ArchitectureSpec(
            config=GatedConfig,
            build=GatedArchitecture,
            summary="Gates apart from magnitudes; a penalty on the gates, its weight steered to the target L0",
            source="Rajamanoharan et al. 2024, arXiv 2404.16014",
        )
    ]
