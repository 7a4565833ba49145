"""ReLU SAE with an L1 penalty, its weight steered to the target L0: the form of 2023, and that of April 2024."""

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

_START_NORM = 0.1


class ReLUConfig(ArchitectureConfig):
    """Configuration of `ReLUArchitecture`."""

    type: Literal["relu"] = "relu"
    form: Literal["bricken", "april_2024"] = Field(
        "bricken",
        description="`bricken`: decoder rows of norm one. `april_2024`: free norms that start at 0.1 and weight the "
        "penalty; they are folded into the codes at the end.",
    )
    l1_coefficient: PositiveFloat = Field(
        0.1, description="Weight of the penalty before the controller multiplies it, for inputs of unit mean square."
    )
    pre_bias: bool | None = Field(
        None, description="Subtract `b_dec` before encoding; by default `bricken` does and `april_2024` does not."
    )


class ReLUArchitecture(Architecture):
    """``z = relu((x - b_dec) W_enc + b_enc)``; loss ``||x - x_hat||^2 + lambda sum_j z_j ||d_j||``."""

    def __init__(self, config: ReLUConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the penalised loss; a controller moves lambda until the mean L0 is the target."""
        april = self.config.form == "april_2024"
        l1 = L1(norm_weighted=april)
        penalty = WeightedTerm(l1, self.config.l1_coefficient, "warmup", controlled=True, l0=shape.l0)
        objective = Objective((WeightedTerm(Reconstruction()), penalty))
        pre_bias = not april if self.config.pre_bias is None else self.config.pre_bias
        centring: Literal["b_dec", "none"] = "b_dec" if pre_bias else "none"
        if april:
            return Recipe(ReLU(), objective, centring, decoder_norm="free", start_norm=_START_NORM)
        return Recipe(ReLU(), objective, centring)


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``relu``."""
    return [
        ArchitectureSpec(
            config=ReLUConfig,
            build=ReLUArchitecture,
            summary="ReLU with an L1 penalty, its weight steered to the target L0",
            source="Bricken et al. 2023, Towards Monosemanticity; Anthropic, Circuits Updates April 2024",
        )
    ]
