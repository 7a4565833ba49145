"""Soft-Frozen Decoder: every decoder direction stays within a cap around its random start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

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
    project_on_band,
)


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
        project_on_band(sae.w_dec, start.w_dec, self.config.tau)

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the share of rows that lie on the bound."""
        cosine = torch.nn.functional.cosine_similarity(sae.w_dec, start.w_dec, dim=1)
        return {"at_bound_share": float((cosine <= self.config.tau + 1e-5).double().mean())}


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
