"""Permuted Decoder: a trained SAE whose latents write along each other's directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch

from saebench_core import (
    Constraint,
    ConstraintConfig,
    ConstraintSpec,
    InputError,
    Json,
    Randomised,
    Recipe,
    Role,
    Shape,
    SparseAutoencoder,
    Start,
    drawn_order,
    hookimpl,
    tensor_sha256,
)


class PermutedDecoderConfig(ConstraintConfig):
    """Configuration of `PermutedDecoder`."""

    type: Literal["permuted_decoder"] = "permuted_decoder"


class PermutedDecoder(Constraint):
    """The trained twin, its decoder rows moved along one random cycle: what a latent reads stays, what it writes goes.

    Codes, L0, frequencies and the set of directions are the twin's; only which latent has which direction is random.
    The cycle follows the order of the cell's own draw, and leaves no latent its own row.
    """

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"pairing"})
    needs: ClassVar[str | None] = "trained"
    trains: ClassVar[bool] = False

    def __init__(self, config: PermutedDecoderConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Keep the norms as drawn, one: the twin has its own."""
        return replace(recipe, decoder_norm="unit", start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze nothing: of the draw only the order of latents is kept; the certificate has the twin's tensors."""
        return frozenset()

    def finish(self, sae: SparseAutoencoder, twin: SparseAutoencoder | None) -> SparseAutoencoder:
        """Return the twin with its decoder rows moved."""
        if twin is None:
            raise InputError("permuted_decoder starts from a trained twin, and none was given")
        order = drawn_order(sae.w_dec)
        rows = torch.empty_like(twin.w_dec)
        rows[order] = twin.w_dec[order.roll(1)]
        return SparseAutoencoder({**twin.tensors, "W_dec": rows}, twin.rule, twin.centring)

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the hash of the twin's decoder, which is this one with the cycle undone."""
        order = start.order
        rows = torch.empty_like(sae.w_dec)
        rows[order.roll(1)] = sae.w_dec[order]
        return {"unpermuted_w_dec_sha256": tensor_sha256(rows)}


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``permuted_decoder``."""
    return [
        ConstraintSpec(
            config=PermutedDecoderConfig,
            build=PermutedDecoder,
            summary="A trained SAE with its decoder rows permuted: latents write along each other's directions",
        )
    ]
