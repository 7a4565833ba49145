"""Nothing is held random: the SAE under test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from saebench_core import Constraint, ConstraintConfig, ConstraintSpec, Recipe, Role, hookimpl


class TrainedConfig(ConstraintConfig):
    """Configuration of `Trained`."""

    type: Literal["trained"] = "trained"


class Trained(Constraint):
    """Every tensor is trained."""

    def __init__(self, config: TrainedConfig) -> None:
        self.config = config

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing."""
        return frozenset()


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``trained``."""
    return [
        ConstraintSpec(
            config=TrainedConfig,
            build=Trained,
            summary="Nothing is held random: the SAE under test",
            source="Sanity Checks for SAEs, section 4.1",
        )
    ]
