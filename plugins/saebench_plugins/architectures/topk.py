"""TopK SAE (Gao et al. 2024): the k largest pre-activations of each row."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    AuxK,
    InputError,
    Objective,
    Recipe,
    Reconstruction,
    Shape,
    TopK,
    WeightedTerm,
    hookimpl,
)


class TopKConfig(ArchitectureConfig):
    """Configuration of `TopKArchitecture`."""

    later: ClassVar[frozenset[str]] = frozenset({"aux_k"})

    type: Literal["topk"] = "topk"
    aux_coefficient: NonNegativeFloat = Field(1 / 32, description="Weight of the loss that revives dead latents.")
    aux_k: PositiveInt | None = Field(
        None, description="Dead latents that the loss that revives them takes a row; null: half of `d_in`."
    )


class TopKArchitecture(Architecture):
    """``z = top_k(relu((x - b_dec) W_enc + b_enc))``; loss ``||x - x_hat||^2 + alpha aux``; unit-norm decoder."""

    def __init__(self, config: TopKConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss.

        Raises:
            InputError: if the target L0 is not a whole number.
        """
        if shape.l0 != round(shape.l0):
            raise InputError(
                f"topk keeps a whole number of latents a row: l0 {shape.l0:g} is not one; try {round(shape.l0)}"
            )
        terms = [WeightedTerm(Reconstruction())]
        if self.config.aux_coefficient:
            terms.append(WeightedTerm(AuxK(self.config.aux_k), self.config.aux_coefficient))
        return Recipe(TopK(round(shape.l0)), Objective(tuple(terms)))


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``topk``."""
    return [
        ArchitectureSpec(
            config=TopKConfig,
            build=TopKArchitecture,
            summary="The k largest pre-activations of each row",
            source="Gao et al. 2024, arXiv 2406.04093",
        )
    ]
