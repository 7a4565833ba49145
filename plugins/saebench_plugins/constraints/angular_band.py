"""Angular Band: every decoder direction moves away from its random start, but not too far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator

from saebench_core import (
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Json,
    Recipe,
    Role,
    SparseAutoencoder,
    Start,
    hookimpl,
    project_on_band,
)

_AT_BOUND = 1e-5


class AngularBandConfig(ConstraintConfig):
    """Configuration of `AngularBand`."""

    type: Literal["angular_band"] = "angular_band"
    least: float = Field(0.5, ge=-1.0, le=1.0, description="Smallest cosine of a direction with its start.")
    most: float = Field(0.8, ge=-1.0, le=1.0, description="Largest cosine of a direction with its start.")

    @model_validator(mode="after")
    def _ordered(self) -> AngularBandConfig:
        if self.least >= self.most:
            raise ValueError(f"least {self.least:g} must be below most {self.most:g}")
        if (self.least, self.most) == (-1.0, 1.0):
            raise ValueError("a band from -1 to 1 holds nothing: that is the constraint `trained`")
        return self


class AngularBand(Constraint):
    """``least <= cos(d_j, d_j at the start) <= most``, by exact projection after every step.

    A direction cannot stay lazily where it was drawn, as under a cap, and cannot go wherever it likes. One that
    training does not move is pushed to the bound along a fixed axis. A point between free and frozen, and no null by
    itself: what a wide band leaves to learn may earn the score.
    """

    def __init__(self, config: AngularBandConfig) -> None:
        self.config = config

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing: the decoder moves within its bands."""
        return frozenset()

    def project(self, sae: SparseAutoencoder, start: Start) -> None:
        """Bring every row that left its band to the band's nearest point; the others keep their bits."""
        project_on_band(sae.w_dec, start.w_dec, self.config.least, self.config.most)

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the largest cosine, and the share of rows that lie on either bound."""
        cosine = torch.nn.functional.cosine_similarity(sae.w_dec.detach(), start.w_dec, dim=1)
        at_bound = (cosine <= self.config.least + _AT_BOUND) | (cosine >= self.config.most - _AT_BOUND)
        return {"at_bound_share": float(at_bound.double().mean()), "decoder_cosine_max": float(cosine.max())}


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``angular_band``."""
    return [
        ConstraintSpec(
            config=AngularBandConfig,
            build=AngularBand,
            summary="Decoder directions stay between two cosines with their random start",
        )
    ]
