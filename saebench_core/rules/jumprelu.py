"""JumpReLU: a threshold for each latent, trained by surrogate gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from saebench_core.kernels import PreActivations, Selected, Selection
from saebench_core.rules.base import Export, Rule, TensorInfo

__all__ = ["JumpReLU"]


class _Jump(torch.autograd.Function):
    """``z = pre * [pre > threshold]`` with the rectangle surrogate for the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        pre, threshold = ctx.saved_tensors
        window = ((pre - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        return grad * (pre > threshold), -grad * threshold / ctx.bandwidth * window, None


class _Step(torch.autograd.Function):
    """``[pre > threshold]`` with the rectangle surrogate, or its upper half, for the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, half: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.half = bandwidth, half
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad: Tensor = grads[0]
        pre, threshold = ctx.saved_tensors
        inside = (pre - threshold).abs() < ctx.bandwidth / 2
        window = (inside & (pre > threshold) if ctx.half else inside).to(grad.dtype)
        return None, -grad / ctx.bandwidth * window, None, None


@final
@dataclass(frozen=True)
class JumpReLU(Rule):
    """Pre-activations above a threshold of each latent's own (Rajamanoharan et al. 2024).

    Attributes:
        bandwidth: width of the surrogate's kernel, in units of the normalised inputs.
        start: threshold at the start.
        half_kernel: count with the kernel's upper half only, as dictionary_learning does by feeding it what has
            jumped already.
    """

    by_row: ClassVar[bool] = True

    bandwidth: float = 0.001
    start: float = 0.001
    half_kernel: bool = False

    def tensors(self) -> Mapping[str, TensorInfo]:
        """One ``threshold`` a latent, trained."""
        return {"threshold": TensorInfo("threshold", ("d_sae",), start=self.start)}

    def select_training(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select what is active or inside the surrogate's kernel."""
        return pre.above(tensors["threshold"] - self.bandwidth / 2)

    def select_inference(self, pre: PreActivations, tensors: Mapping[str, Tensor]) -> Selected:
        """Select what is above its threshold and positive."""
        return pre.above(tensors["threshold"].clamp(min=0))

    def activate(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the values above the threshold, zero inside the kernel below it."""
        result: Tensor = _Jump.apply(pre, tensors["threshold"].index_select(0, selection.cols), self.bandwidth)
        return result

    def count(self, pre: Tensor, selection: Selection, tensors: Mapping[str, Tensor]) -> Float[Tensor, " entries"]:
        """Return 1 for every active entry, with the surrogate gradient to the thresholds."""
        threshold = tensors["threshold"].index_select(0, selection.cols)
        result: Tensor = _Step.apply(pre, threshold, self.bandwidth, self.half_kernel)
        return result

    def rescaled(self, tensors: Mapping[str, Tensor], factors: Tensor) -> tuple[Rule, Mapping[str, Tensor]]:
        """Thresholds are on the scale of pre-activations."""
        return self, {"threshold": tensors["threshold"] * factors}

    def after_step(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep thresholds at zero or above."""
        tensors["threshold"].clamp_(min=0)

    def export(self, tensors: Mapping[str, Tensor]) -> Export:
        """Write as SAELens' ``jumprelu``."""
        return Export("jumprelu", {}, {"threshold": tensors["threshold"].clamp(min=0)})
