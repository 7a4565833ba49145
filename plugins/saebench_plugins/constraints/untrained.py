"""Untrained: the SAE as it was drawn, with no optimiser step at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from saebench_core import (
    BatchTopK,
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Init,
    Randomised,
    Recipe,
    ReLU,
    Role,
    Shape,
    hookimpl,
)


class UntrainedConfig(ConstraintConfig):
    """Configuration of `Untrained`."""

    type: Literal["untrained"] = "untrained"
    init: Init = Field("kaiming", description="Directions as drawn; the paper's untrained SAEs are Kaiming.")
    calibrate: Literal["l0", "none"] = Field(
        "l0", description="`l0`: one global threshold at the quantile that gives the target L0; `none`: as drawn."
    )


class Untrained(Constraint):
    """Encoder and decoder stay as drawn."""

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"encoder", "decoder"})
    trains: ClassVar[bool] = False

    def __init__(self, config: UntrainedConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Give the rule a global threshold for the target L0, or take the one away; keep the norms as drawn, one."""
        recipe = replace(recipe, decoder_norm="unit", start_norm=1.0)
        calibrated = recipe.rule.calibrated() is not None
        if self.config.calibrate == "none":
            return replace(recipe, rule=ReLU()) if calibrated else recipe
        if calibrated or recipe.rule.meets_l0:
            return recipe
        return replace(recipe, rule=BatchTopK(shape.l0))

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze every weight and bias; a threshold may still be set from data."""
        return frozenset(name for name, role in roles.items() if role != "threshold")


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``untrained``."""
    return [
        ConstraintSpec(
            config=UntrainedConfig,
            build=Untrained,
            summary="As drawn, never trained; by default with one threshold that meets the target L0",
            source="Sanity Checks for SAEs, appendix G",
        )
    ]
