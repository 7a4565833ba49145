"""Frozen Decoder: random directions that never move, with a learned encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from saebench_core import Constraint, ConstraintConfig, ConstraintSpec, Randomised, Recipe, Role, Shape, hookimpl


class FrozenDecoderConfig(ConstraintConfig):
    """Configuration of `FrozenDecoder`."""

    type: Literal["frozen_decoder"] = "frozen_decoder"


class FrozenDecoder(Constraint):
    """All decoder directions stay as drawn; encoder, biases and thresholds are trained."""

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"decoder"})

    def __init__(self, config: FrozenDecoderConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Drop terms that the frozen decoder alone decides, such as OrtSAE's; keep the norms as drawn, one."""
        reason = "a constant: it depends on the frozen decoder alone"
        objective = recipe.objective.without_constants("decoder", reason)
        return replace(recipe, objective=objective, decoder_norm="unit", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze every tensor whose role is ``decoder``."""
        return frozenset(name for name, role in roles.items() if role == "decoder")


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``frozen_decoder``."""
    return [
        ConstraintSpec(
            config=FrozenDecoderConfig,
            build=FrozenDecoder,
            summary="Random decoder directions that never move; the encoder learns",
            source="Sanity Checks for SAEs, section 4.1 and appendix D",
        )
    ]
