"""OrtSAE-style SAE (Korznikov et al. 2025): BatchTopK with a penalty on decoder directions that lie close together."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    AuxK,
    BatchTopK,
    Objective,
    Orthogonality,
    Recipe,
    Reconstruction,
    Shape,
    WeightedTerm,
    hookimpl,
)


class OrtSAEConfig(ArchitectureConfig):
    """Configuration of `OrtSAE`."""

    later: ClassVar[frozenset[str]] = frozenset({"aux_k"})

    type: Literal["ortsae"] = "ortsae"
    gamma: PositiveFloat = Field(0.25, description="Weight of the penalty.")
    chunk: PositiveInt = Field(
        8192, ge=2, description="Most latents that are compared with each other; chunks are drawn anew every step."
    )
    every: PositiveInt = Field(1, description="The penalty is taken in every so-many-th step.")
    reduce: Literal["max", "mean_sq"] = Field(
        "max", description="Over the other latents of a chunk: the largest cosine squared, or the mean of all squares."
    )
    sign: Literal["positive", "abs"] = Field(
        "positive", description="Whether directions that are opposite count as close (`abs`)."
    )
    aux_coefficient: NonNegativeFloat = Field(1 / 32, description="Weight of the loss that revives dead latents.")
    aux_k: PositiveInt | None = Field(
        None, description="Dead latents that the loss that revives them takes a row; null: half of `d_in`."
    )


class OrtSAE(Architecture):
    """BatchTopK; loss ``||x - x_hat||^2 + alpha aux + gamma mean_j max_i cos(d_i, d_j)^2`` within random chunks.

    The form of the penalty is a reading of the abstract, not checked against the authors' code. Under a frozen decoder
    it is a constant and left out; a soft-frozen decoder follows it within its caps.
    """

    def __init__(self, config: OrtSAEConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss; the threshold is calibrated on held-out rows after training."""
        config = self.config
        penalty = Orthogonality(config.chunk, config.every, config.reduce, config.sign)
        terms = [WeightedTerm(Reconstruction()), WeightedTerm(penalty, config.gamma)]
        if config.aux_coefficient:
            terms.append(WeightedTerm(AuxK(config.aux_k), config.aux_coefficient))
        return Recipe(BatchTopK(shape.l0), Objective(tuple(terms)))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``ortsae``."""
    return [
        ArchitectureSpec(
            config=OrtSAEConfig,
            build=OrtSAE,
            summary="BatchTopK with a penalty on decoder directions that lie close together",
            source="after Korznikov et al. 2025, arXiv 2509.22033",
        )
    ]
