"""How SAEs are trained: the ``training`` block of a registry, with named presets."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from saebench_core.interfaces.entry import Model

__all__ = ["PRESETS", "TrainingSettings"]

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "paper": {"tokens": 500_000_000, "batch_size": 4096, "lr": 2e-4, "weight_decay": 0.01},
    "dictionary_learning": {
        "tokens": 500_000_000,
        "batch_size": 2048,
        "lr": 3e-4,
        "weight_decay": 0.0,
        "warmup_steps": 1000,
        "sparsity_warmup_steps": 5000,
    },
}
"""Named defaults: the paper's section 4.1, and the demo settings behind SAEBench's own SAEs."""

_BUFFER_ROWS = 1 << 18
_LONGEST_WARMUP = 1000
_LONGEST_SPARSITY_WARMUP = 5000
_LONGEST_DEAD_WINDOW = 10_000_000


class TrainingSettings(Model):
    """Budget, optimiser and schedules; keys left out scale with the budget."""

    preset: Literal["paper", "dictionary_learning"] | None = Field(
        None, description="Named defaults for the other keys."
    )
    steps: PositiveInt | None = Field(None, description="Optimiser steps; either this or `tokens`.")
    tokens: PositiveInt | None = Field(None, description="Rows to train on; either this or `steps`.")
    batch_size: PositiveInt = Field(4096, description="Rows a step.")
    lr: PositiveFloat = Field(2e-4, description="Learning rate after the warm-up.")
    warmup_steps: NonNegativeInt | None = Field(
        None, description="Linear warm-up; default 5 % of the steps, at most 1,000."
    )
    decay_fraction: float = Field(0.2, ge=0.0, le=1.0, description="Last share of the steps, in which lr falls to 0.")
    weight_decay: NonNegativeFloat = Field(0.01, description="AdamW's decay, on weight matrices only.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decays.")
    clip_norm: PositiveFloat | None = Field(
        1.0, description="Largest gradient norm over the trained tensors; null: none."
    )
    sparsity_warmup_steps: NonNegativeInt | None = Field(
        None, description="Linear warm-up of sparsity penalties; default 5 % of the steps, at most 5,000."
    )
    dead_rows: PositiveInt | None = Field(
        None, description="Rows without a firing after which a latent is dead; default 2 % of the budget, at most 10M."
    )
    normalise: Literal["mean_square", "none"] = Field(
        "mean_square",
        description="Scale activations to unit mean-square norm while training; folded back on save. What "
        "architectures have as defaults for coefficients, bandwidths and thresholds is meant for that.",
    )
    b_dec_init: Literal["mean", "zero"] = Field("mean", description="Decoder bias at the start.")
    encoder_gain: PositiveFloat = Field(
        1.0,
        description="Length of the encoder's vectors at the start over the decoder's; 1 where the encoder is frozen.",
    )
    calibration_rows: PositiveInt = Field(1 << 17, description="Held-out rows on which inference thresholds are set.")
    activations: Literal["cached", "streamed"] = Field(
        "cached",
        description="Activations to train on: stored once, or computed anew for each seed and never stored.",
    )
    buffer_rows: PositiveInt = Field(
        _BUFFER_ROWS, description="Rows in memory at once while activations are streamed; they mix within that."
    )
    evaluation_rows: PositiveInt = Field(65536, description="Evaluation rows for realised L0 and alive share.")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") not in PRESETS:
            return data
        preset = dict(PRESETS[data["preset"]])
        if data.get("steps") is not None:
            preset.pop("tokens", None)
        return preset | data

    @model_serializer(mode="wrap")
    def _identity(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what says nothing where rows are cached, or at gain 1, so that ids are what they were before."""
        data = dict(standard(self))
        if self.activations == "cached":
            del data["activations"], data["buffer_rows"]
        if self.encoder_gain == 1:
            del data["encoder_gain"]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give exactly one of `steps` and `tokens`")
        if self.tokens is not None and self.tokens < self.batch_size:
            raise ValueError(f"tokens {self.tokens} is less than one batch of {self.batch_size}")
        if self.warmup_steps is not None and self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below the {self.total_steps} steps of training")
        if self.activations == "cached" and self.buffer_rows != _BUFFER_ROWS:
            raise ValueError("buffer_rows is for `activations: streamed`; cached rows are all permuted at once")
        if self.activations == "streamed" and self.buffer_rows < 5 * self.batch_size:
            raise ValueError(f"buffer_rows {self.buffer_rows} must be at least 5 batches of {self.batch_size}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {list(self.betas)}")
        return self

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps."""
        return self.steps if self.steps is not None else (self.tokens or 0) // self.batch_size

    @property
    def total_rows(self) -> int:
        """Number of rows trained on."""
        return self.total_steps * self.batch_size

    @property
    def warmup(self) -> int:
        """Steps of the learning rate's warm-up."""
        return self.warmup_steps if self.warmup_steps is not None else min(_LONGEST_WARMUP, self.total_steps // 20)

    @property
    def sparsity_warmup(self) -> int:
        """Steps of the sparsity warm-up."""
        if self.sparsity_warmup_steps is not None:
            return self.sparsity_warmup_steps
        return min(_LONGEST_SPARSITY_WARMUP, self.total_steps // 20)

    @property
    def dead_window(self) -> int:
        """Rows after which a silent latent counts as dead."""
        return (
            self.dead_rows if self.dead_rows is not None else max(1, min(_LONGEST_DEAD_WINDOW, self.total_rows // 50))
        )

    def lr_factor(self, step: int) -> float:
        """Return the learning rate's multiplier at a step counted from 0: warm-up, constant, linear decay."""
        total, warmup = self.total_steps, self.warmup
        factor = min(1.0, (step + 1) / (warmup + 1))
        decay_from = total - self.decay_fraction * total
        return (
            min(factor, (total - step) / (total - decay_from)) if step >= decay_from and self.decay_fraction else factor
        )

    def sparsity_factor(self, step: int) -> float:
        """Return the share of the sparsity warm-up that has passed at a step counted from 0."""
        return min(1.0, step / self.sparsity_warmup) if self.sparsity_warmup else 1.0
