"""Partial Freeze: a random share of the latents stays as drawn, the others learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from jaxtyping import Int
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
    tensor_sha256,
)


class PartialFreezeConfig(ConstraintConfig):
    """Configuration of `PartialFreeze`."""

    type: Literal["partial_freeze"] = "partial_freeze"
    fraction: float = Field(
        0.5, gt=0.0, lt=1.0, description="Share of the latents that stay as drawn; all of them are `frozen_decoder`'s."
    )
    part: Literal["decoder", "encoder", "both"] = Field(
        "decoder", description="What of these latents is frozen: their directions, what they read, or both."
    )


class PartialFreeze(Constraint):
    """The first latents in the order of the draw keep their vectors, bit by bit; everything else is trained.

    A point on the way from `trained` to a frozen twin, and no null by itself: what is left to learn may earn the score.
    Where encoder vectors are frozen the encoder's centre is fixed, as under `frozen_encoder`.
    """

    def __init__(self, config: PartialFreezeConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Keep norms at one, and the centre fixed where encoder vectors are frozen."""
        fixed = self.config.part != "decoder" and recipe.centring == "b_dec"
        return replace(recipe, decoder_norm="unit", start_norm=1.0, centring="fixed" if fixed else recipe.centring)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze no whole tensor; `project` puts the frozen latents back."""
        return frozenset()

    def _latents(self, start: Start) -> Int[Tensor, " latents"]:
        count = round(self.config.fraction * start.order.numel())
        return start.order[: min(max(1, count), start.order.numel() - 1)]

    def project(self, sae: SparseAutoencoder, start: Start) -> None:
        """Put the frozen latents back where they were drawn.

        With the encoder's vectors go what it has beside them (a scale, a bias), but for the bias that is the threshold.
        """
        latents = self._latents(start)
        if self.config.part != "encoder":
            sae.w_dec[latents] = start.w_dec[latents]
        if self.config.part != "decoder":
            sae.w_enc[:, latents] = start.w_enc[:, latents]
            if not sae.rule.bias_is_threshold:
                sae.encoder_bias[latents] = 0.0
            for name, info in sae.rule.tensors().items():
                if info.role in ("encoder", "bias") and info.shape == ("d_sae",):
                    sae.tensors[name][latents] = info.start

    def certify(self, sae: SparseAutoencoder, start: Start) -> Mapping[str, Json]:
        """State the frozen latents' number, and hashes of their vectors before and after."""
        latents = self._latents(start)
        found: dict[str, Json] = {"count": latents.numel()}
        for name in {"decoder": ["W_dec"], "encoder": ["W_enc"], "both": ["W_dec", "W_enc"]}[self.config.part]:
            before = start.w_dec if name == "W_dec" else start.w_enc.T
            after = sae.w_dec if name == "W_dec" else sae.w_enc.T
            found[name] = {"before": tensor_sha256(before[latents]), "after": tensor_sha256(after[latents])}
        return {"frozen_latents": found}


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``partial_freeze``."""
    return [
        ConstraintSpec(
            config=PartialFreezeConfig,
            build=PartialFreeze,
            summary="A random share of the latents stays as drawn, the others learn",
        )
    ]
