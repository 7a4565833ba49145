"""Soft-Frozen Decoder: every decoder direction stays within a cap around its random start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saebench_core import (
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    Json,
    Randomised,
    Recipe,
    Role,
    SparseAutoencoder,
    Start,
    hookimpl,
)

_GUARD = 1e-5
"""Share of the norm below which the sideways part of a row is rounding noise and gives no direction."""


class SoftFrozenDecoderConfig(ConstraintConfig):
    """Configuration of `SoftFrozenDecoder`."""

    type: Literal["soft_frozen_decoder"] = "soft_frozen_decoder"
    tau: float = Field(0.8, ge=-1.0, le=1.0, description="Smallest cosine of a direction with its start.")


class SoftFrozenDecoder(Constraint):
    """``cos(d_j, d_j at the start) >= tau``, by exact projection on the cap after every step."""

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"decoder"})

    def __init__(self, config: SoftFrozenDecoderConfig) -> None:
        self.config = config

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing: the decoder moves within its caps."""
        return frozenset()

    def project(self, sae: SparseAutoencoder, start: Start) -> None:
        """Bring every row that left its cap to the cap's nearest point; the others keep their bits."""
        project_on_caps(sae.w_dec, start.w_dec, self.config.tau)

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the share of rows that lie on the bound."""
        cosine = torch.nn.functional.cosine_similarity(sae.w_dec, start.w_dec, dim=1)
        return {"at_bound_share": float((cosine <= self.config.tau + 1e-5).double().mean())}


def project_on_caps(rows: Float[Tensor, "d_sae d_in"], anchors: Float[Tensor, "d_sae d_in"], tau: float) -> None:
    """Project each row, in place, on ``{d : <d, anchor> >= tau ||d||}``, keeping its norm.

    With ``v`` outside the cap and ``u = v - <v, a> a``: ``tau a + sqrt(1 - tau^2) u / ||u||`` is the nearest
    point in Euclidean and in geodesic distance. Where ``u`` is rounding noise (v antiparallel
    to the anchor) a fixed axis made orthogonal to the anchor takes its place.

    Args:
        rows: directions, changed in place.
        anchors: unit-norm starts.
        tau: cosine of the cap.
    """
    norms = rows.norm(dim=1, keepdim=True)
    along = (rows * anchors).sum(dim=1, keepdim=True)
    outside = (along < tau * norms).squeeze(1).nonzero(as_tuple=True)[0]
    if outside.numel() == 0:
        return
    anchor, norm = anchors[outside], norms[outside]
    sideways = rows[outside] - along[outside] * anchor
    length = sideways.norm(dim=1, keepdim=True)
    sideways = torch.where(length < _GUARD * norm, _orthogonal_axis(anchor), sideways)
    # once more, so that what rounding left along the anchor cannot push the cosine off tau
    sideways = sideways - (sideways * anchor).sum(dim=1, keepdim=True) * anchor
    sideways = torch.nn.functional.normalize(sideways, dim=1)
    rows[outside] = norm * (tau * anchor + math.sqrt(max(0.0, 1 - tau * tau)) * sideways)


def _orthogonal_axis(anchors: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """Return, for each unit anchor, the coordinate axis it leans on least, made orthogonal to it."""
    axis = torch.zeros_like(anchors)
    axis.scatter_(1, anchors.abs().argmin(dim=1, keepdim=True), 1.0)
    return axis - (axis * anchors).sum(dim=1, keepdim=True) * anchors


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``soft_frozen_decoder``."""
    return [
        ConstraintSpec(
            config=SoftFrozenDecoderConfig,
            build=SoftFrozenDecoder,
            summary="Decoder directions stay within a cosine tau of their random start",
            source="Sanity Checks for SAEs, section 4.1 and appendix D",
        )
    ]
