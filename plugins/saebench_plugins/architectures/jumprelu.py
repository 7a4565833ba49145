"""JumpReLU SAE (Rajamanoharan et al. 2024): a threshold for each latent, trained by surrogate gradients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from saebench_core import (
    Architecture,
    ArchitectureConfig,
    ArchitectureSpec,
    JumpReLU,
    Objective,
    PreActivationLoss,
    Recipe,
    Reconstruction,
    Shape,
    StepL0,
    TanhPenalty,
    TargetL0,
    WeightedTerm,
    hookimpl,
)

_TRIM = 0.06
"""Weight of the steered L0 beside ``target_l0``, over the target: about what one more latent explains."""
_TRIM_GAIN = 10.0


class JumpReLUConfig(ArchitectureConfig):
    """Configuration of `JumpReLUArchitecture`."""

    type: Literal["jumprelu"] = "jumprelu"
    loss: Literal["target_l0", "step_l0", "tanh"] = Field(
        "target_l0",
        description="`target_l0`: the squared relative miss of the target (dictionary_learning). `step_l0`: the L0 "
        "itself, its weight steered to the target (the paper). `tanh`: a soft count of values, steered likewise, with "
        "a loss that draws silent latents towards firing, and free decoder norms (Anthropic, January 2025).",
    )
    bandwidth: PositiveFloat | None = Field(
        None,
        description="Width of the surrogate's kernel, for inputs of unit mean square; by default 0.001, and "
        "2 / sqrt(d_in) for `tanh`.",
    )
    threshold: PositiveFloat | None = Field(
        None, description="Threshold of every latent at the start; by default 0.001, and 0.1 / sqrt(d_in) for `tanh`."
    )
    l0_coefficient: PositiveFloat | None = Field(
        None,
        description="Weight of the sparsity term, where it is steered before the controller multiplies it; by default "
        "1 for `target_l0`, 0.003 for `step_l0`, 1 / d_in for `tanh`.",
    )
    compat_dl: bool = Field(
        False,
        description="As dictionary_learning: the upper half of the kernel counts, and `target_l0` stands alone, which "
        "settles some percent above the target.",
    )
    tanh_scale: PositiveFloat = Field(
        4.0, description="c in tanh(c z ||d||), for inputs of mean norm sqrt(d_in) as published (`tanh` only)."
    )
    pre_activation: Literal["all", "dead"] = Field(
        "all", description="Latents that are drawn towards firing: `all`, or `dead` as in SAELens (`tanh` only)."
    )


class JumpReLUArchitecture(Architecture):
    """``z = pre [pre > theta]`` with ``pre = x W_enc + b_enc``; no pre-encoder bias.

    The loss is ``||x - x_hat||^2`` and one of ``c (mean L0 / target - 1)^2 + lambda L0``, ``lambda L0`` and ``lambda
    sum_j tanh(c z_j ||d_j||) + lambda_p sum_j relu(theta_j - pre_j) ||d_j||``. The square alone settles where its slope
    is what one more latent explains, above the target; lambda takes that up.
    """

    def __init__(self, config: JumpReLUConfig) -> None:
        self.config = config

    def recipe(self, shape: Shape) -> Recipe:
        """Return the rule and the loss; a controller moves lambda until the mean L0 is the target."""
        if self.config.loss == "tanh":
            return self._tanh(shape)
        config, l0, terms = self.config, shape.l0, [WeightedTerm(Reconstruction())]
        if config.loss == "target_l0":
            terms.append(WeightedTerm(TargetL0(l0), config.l0_coefficient or 1.0, "warmup"))
            if not config.compat_dl:
                terms.append(WeightedTerm(StepL0(), _TRIM / l0, "warmup", controlled=True, l0=l0, gain=_TRIM_GAIN))
        else:
            terms.append(WeightedTerm(StepL0(), config.l0_coefficient or 0.003, "warmup", controlled=True, l0=l0))
        rule = JumpReLU(config.bandwidth or 0.001, config.threshold or 0.001, config.compat_dl)
        return Recipe(rule, Objective(tuple(terms)), centring="none")

    def _tanh(self, shape: Shape) -> Recipe:
        """Return the recipe of January 2025; its constants are for inputs of norm sqrt(d_in), these have norm one.

        The published weight rises through the whole training; here the controller moves it.
        """
        config, root = self.config, shape.d_in**0.5
        rule = JumpReLU(config.bandwidth or 2 / root, config.threshold or 0.1 / root)
        weight = config.l0_coefficient or 1 / shape.d_in
        tanh = WeightedTerm(TanhPenalty(config.tanh_scale * root), weight, "warmup", controlled=True, l0=shape.l0)
        revive = WeightedTerm(PreActivationLoss(config.pre_activation), 3e-6 / root)
        terms = (WeightedTerm(Reconstruction()), tanh, revive)
        return Recipe(rule, Objective(terms), centring="none", decoder_norm="free")


@hookimpl
def register_architectures() -> list[ArchitectureSpec]:
    """Offer ``jumprelu``."""
    return [
        ArchitectureSpec(
            config=JumpReLUConfig,
            build=JumpReLUArchitecture,
            summary="A trained threshold for each latent, steered to the target L0 by the loss",
            source="Rajamanoharan et al. 2024, arXiv 2407.14435; target-L0 loss as in dictionary_learning",
        )
    ]
