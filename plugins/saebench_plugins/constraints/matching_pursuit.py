"""Matching Pursuit: codes for the starting directions by a greedy search, with no encoder and no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from saebench_core import (
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Randomised,
    Recipe,
    Role,
    Shape,
    hookimpl,
)
from saebench_plugins.constraints._pursuit import Pursuit


class MatchingPursuitConfig(ConstraintConfig):
    """Configuration of `MatchingPursuit`."""

    type: Literal["matching_pursuit"] = "matching_pursuit"


class MatchingPursuit(Constraint):
    """The directions of the start, coded by orthogonal matching pursuit at the target L0.

    With ``init: truth`` it is a reference for SAEs that know the truth, with ``iso`` what any directions explain where
    no encoder stands in the way. The search is greedy, so better codes may exist. Coefficients may be negative.
    """

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"encoder", "decoder"})
    reference: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    def __init__(self, config: MatchingPursuitConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Put the pursuit in the rule's place; keep the norms as drawn, one."""
        return replace(recipe, rule=Pursuit(max(1, round(shape.l0))), decoder_norm="unit", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze everything."""
        return frozenset(roles)


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``matching_pursuit``."""
    return [
        ConstraintSpec(
            config=MatchingPursuitConfig,
            build=MatchingPursuit,
            summary="Directions as drawn, with codes that a greedy search finds; no encoder, no training",
            source="Pati et al. 1993; Tropp and Gilbert 2007",
        )
    ]
