"""Fixed Norm: decoder directions learn, their norms are random and stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saebench_core import (
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Json,
    Recipe,
    Role,
    Shape,
    SparseAutoencoder,
    Start,
    hookimpl,
)


class FixedNormConfig(ConstraintConfig):
    """Configuration of `FixedNorm`."""

    type: Literal["fixed_norm"] = "fixed_norm"
    spread: float = Field(
        0.5, ge=0.0, le=2.0, description="Standard deviation of the norms' logarithms; 0 gives every row norm one."
    )


class FixedNorm(Constraint):
    """``||d_j|| = exp(spread q_j)``, q the quantiles of a standard normal in the order of the draw.

    A control, not a null: no direction is random. It says what of a score needs norms that are learned or equal. At the
    end the norms go into the codes, as free norms do, where the rule has a form for that.
    """

    def __init__(self, config: FixedNormConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Leave the norms to `project`."""
        return replace(recipe, decoder_norm="free", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze no tensor: directions move."""
        return frozenset()

    def _norms(self, start: Start) -> Float[Tensor, " d_sae"]:
        order = start.order
        places = (torch.arange(order.numel(), dtype=torch.float64, device=order.device) + 0.5) / order.numel()
        norms = torch.empty_like(places)
        norms[order] = (self.config.spread * torch.special.ndtri(places)).exp()
        return norms.to(start.w_dec.dtype)

    def project(self, sae: SparseAutoencoder, start: Start) -> None:
        """Bring every row to its norm."""
        sae.w_dec.mul_((self._norms(start) / sae.w_dec.norm(dim=1).clamp(min=1e-12))[:, None])

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the smallest and the largest norm of a row, and how far rows are from the norms of the draw."""
        norms, wanted = sae.w_dec.detach().norm(dim=1), self._norms(start)
        largest_miss = float((norms / wanted - 1).abs().max())
        return {"fixed_norms": {"min": float(norms.min()), "max": float(norms.max()), "largest_miss": largest_miss}}


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``fixed_norm``."""
    return [
        ConstraintSpec(
            config=FixedNormConfig,
            build=FixedNorm,
            summary="Decoder directions learn, their norms are random and stay: a control, not a null",
        )
    ]
