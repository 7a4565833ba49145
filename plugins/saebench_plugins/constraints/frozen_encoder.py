"""Frozen Encoder: random features are read, a decoder is learned for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from saebench_core import Constraint, ConstraintConfig, ConstraintSpec, Randomised, Recipe, Role, Shape, hookimpl


class FrozenEncoderConfig(ConstraintConfig):
    """Configuration of `FrozenEncoder`."""

    type: Literal["frozen_encoder"] = "frozen_encoder"
    train_b_enc: bool | None = Field(
        None, description="Train the encoder's bias; by default only where it is the threshold (relu, gated)."
    )
    train_magnitudes: bool = Field(
        False, description="Train the scale and the bias of magnitudes (gated), which the encoder's side has beside it."
    )
    keep_aux: bool = Field(False, description="Keep the loss for dead latents, which a frozen encoder cannot revive.")
    decoder_norm: Literal["unit", "free"] = Field(
        "unit", description="`free` lets the decoder scale its rows: a stronger baseline than the paper's."
    )


class FrozenEncoder(Constraint):
    """All encoder directions stay as drawn; the decoder and what decides the threshold are trained.

    The centre of the encoder is a fixed vector (the decoder bias at the start), because a trained one would
    change what the frozen encoder reads.
    """

    randomises: ClassVar[frozenset[Randomised]] = frozenset({"encoder"})

    def __init__(self, config: FrozenEncoderConfig) -> None:
        self.config = config

    def adapt(self, recipe: Recipe, shape: Shape) -> Recipe:
        """Fix the centring, drop the dead-latent loss, set the decoder's norm rule; start with the norms as drawn."""
        objective = recipe.objective
        if not self.config.keep_aux:
            objective = objective.without("aux_k", "a frozen encoder cannot revive dead latents")
        recipe = replace(recipe, objective=objective)
        if recipe.centring == "b_dec":
            recipe = replace(recipe, centring="fixed")
        return replace(recipe, decoder_norm=self.config.decoder_norm, start_norm=1.0)

    def frozen(self, roles: Mapping[str, Role], recipe: Recipe) -> frozenset[str]:
        """Freeze the encoder's tensors and biases, but for the bias that is trained as the threshold."""
        rule, config = recipe.rule, self.config
        train_bias = config.train_b_enc if config.train_b_enc is not None else rule.bias_is_threshold
        own = {name for name, info in rule.tensors().items() if info.role in ("encoder", "bias")}
        names = {name for name, role in roles.items() if role == "encoder"} | own
        names -= own if config.train_magnitudes else set()
        return frozenset(names if train_bias else names | {rule.encoder_bias} & set(roles))


@hookimpl
def register_constraints() -> list[ConstraintSpec]:
    """Offer ``frozen_encoder``."""
    return [
        ConstraintSpec(
            config=FrozenEncoderConfig,
            build=FrozenEncoder,
            summary="Random encoder directions that never move; the decoder and thresholds learn",
            source="Sanity Checks for SAEs, section 4.1 and appendix D",
        )
    ]
