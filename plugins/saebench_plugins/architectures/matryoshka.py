"""Matryoshka SAE (Bussmann et al. 2025): BatchTopK whose first latents must reconstruct on their own."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    AuxK,
    BatchTopK,
    InputError,
    Objective,
    PrefixReconstruction,
    Recipe,
    Shape,
    WeightedTerm,
    hookimpl,
)


class MatryoshkaConfig(ArchitectureConfig):
    """Configuration of `Matryoshka`."""

    later: ClassVar[frozenset[str]] = frozenset({"aux_k"})

    type: Literal["matryoshka"] = "matryoshka"
    fractions: tuple[PositiveFloat, ...] = Field(
        (0.5, 0.3, 0.2),
        description="Share of the latents in each nested group, in their order; together 1. The default is the "
        "paper's toy model; dictionary_learning's demo has 1/32, 1/16, 1/8, 1/4 and the rest.",
    )
    aux_coefficient: NonNegativeFloat = Field(
        1 / 32, description="Weight of the loss that revives dead latents, on the error of all groups together."
    )
    aux_k: PositiveInt | None = Field(
        None, description="Dead latents that the loss that revives them takes a row; null: half of `d_in`."
    )

    @field_validator("fractions")
    @classmethod
    def _whole(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"the fractions must add up to 1, these to {sum(fractions):g}")
        return fractions


class Matryoshka(Architecture):
    """BatchTopK over all latents; loss ``(1/g) sum_i ||x - x_hat_i||^2``, x_hat_i from the first i groups."""

    def __init__(self, config: MatryoshkaConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss over prefixes; the threshold is calibrated on held-out rows after training.

        Raises:
            InputError: if a group has no latent.
        """
        terms = [WeightedTerm(PrefixReconstruction(self._sizes(shape.d_sae)))]
        if self.config.aux_coefficient:
            terms.append(WeightedTerm(AuxK(self.config.aux_k), self.config.aux_coefficient))
        return Recipe(BatchTopK(shape.l0), Objective(tuple(terms)))

    def _sizes(self, d_sae: int) -> tuple[int, ...]:
        """Return the latents in each group; the last takes what rounding leaves."""
        sizes = [round(fraction * d_sae) for fraction in self.config.fractions[:-1]]
        sizes.append(d_sae - sum(sizes))
        if min(sizes) < 1:
            raise InputError(
                f"d_sae {d_sae} is too small for the fractions {list(self.config.fractions)}: a group has no latent"
            )
        return tuple(sizes)


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``matryoshka``."""
    return [
        ArchitectureSpec(
            config=MatryoshkaConfig,
            build=Matryoshka,
            summary="BatchTopK with nested groups of latents, each prefix of which reconstructs on its own",
            source="Bussmann et al. 2025, arXiv 2503.17547",
        )
    ]
